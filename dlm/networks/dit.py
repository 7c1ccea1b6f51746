"""A bidirectional transformer over noisy tokens: the diffusion transformer, or its plain twin.

    x = embedding(tokens)                                            tokens [B, L]   x [B, L, D]
    x = x + gate * attention(adaLN(x));  x = x + gate * mlp(adaLN(x))       depth times
    hidden = adaLN(x);  logits = head(hidden)                        logits [B, L, K]

With a condition, adaLN(x) = norm(x) * (1 + scale) + shift, and the shifts, scales and gates of all
blocks come from one matmul of it; they start at 0. The condition is the embedded noise level (logit
alpha, [B]) where there is time conditioning, plus the embedding of the class where there are
classes; "no class" is one of them. Without both, adaLN is the norm, gates are one, and none of
these parameters exist.

With noise tokens (lifted noise), x = blank + glimpse * x where a token equals its noise token.

The network returns hidden states. The head is called by the loss, in chunks, and by the sampler, at
the positions it needs. Where tied, head.weight is the one parameter and the embedding looks it up.

Legend: B batch, L length, K states, D width, H heads, C width of the condition.
"""

import math
from typing import Literal, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlm.errors import UserError
from dlm.networks.layers import MLPS, NORMS, Block, LevelEmbedding, modulate, rotary_tables
from dlm.ops.attention import BACKENDS, Backend, Plan, plan

INIT_STD = 0.02  # GPT-2
TIED_LOGIT = 5.0  # what std 0.02 gives at width 256
CONDITION_WIDTH = 128  # SEDD, MDLM


@final
class DiT(nn.Module):
    """Transformer backbone with rotary positions; conditioned by adaLN-zero, or not at all.

    Args:
        num_states: K, rows of the embedding and of the head.
        length: longest sequence; shorter ones work.
        width: D, a multiple of 2 * heads.
        depth: number of blocks.
        heads: H.
        time_conditioning: whether `forward` takes a noise level.
        noise_conditioning: whether `forward` takes the noise token of each position (lifted noise).
        num_classes: classes that `forward` takes; 0 for none.
        mlp: SwiGLU, or GELU with as many parameters.
        mlp_ratio: hidden width of a GELU MLP in units of D; SwiGLU has two thirds of it.
        norm: RMS norm or layer norm, both without weights.
        qk_norm: RMS-normalise queries and keys of each head.
        tied: share head and embedding.
        dropout: on the output of attention and MLP, drawn from the global random stream.
        attention: kernel, see `dlm.ops.attention`.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        num_states: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        *,
        time_conditioning: bool,
        noise_conditioning: bool = False,
        num_classes: int = 0,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        mlp_ratio: float = 4.0,
        norm: Literal["rms", "layer"] = "rms",
        qk_norm: bool = True,
        tied: bool = True,
        dropout: float = 0.0,
        attention: Backend = "auto",
    ) -> None:
        super().__init__()
        sizes = {"num_states": num_states, "length": length, "width": width, "depth": depth}
        for name, size in (sizes | {"heads": heads}).items():
            _require(size >= 1, f"{name} must be at least 1, got {size}")
        _require(
            width % (2 * heads) == 0,
            f"width must be a multiple of 2 * heads = {2 * heads}, got {width}",
        )
        _require(mlp in MLPS, f"mlp must be one of {', '.join(MLPS)}, got {mlp!r}")
        _require(num_classes >= 0, f"num_classes must be at least 0, got {num_classes}")
        _require(mlp_ratio > 0, f"mlp_ratio must be positive, got {mlp_ratio}")
        _require(norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        _require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        _require(
            attention in BACKENDS,
            f"attention must be one of {', '.join(BACKENDS)}, got {attention!r}",
        )
        self.length, self.width, self.depth, self.heads = length, width, depth, heads
        self.time_conditioning, self.num_classes = time_conditioning, num_classes
        self.noise_conditioning = noise_conditioning
        self.backend: Backend = attention
        self.norm = NORMS[norm]
        self.head = nn.Linear(width, num_states, bias=False)
        self.embedding = None if tied else nn.Embedding(num_states, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp, mlp_ratio, norm, qk_norm, dropout) for _ in range(depth)
        )
        if noise_conditioning:
            self.blank = nn.Parameter(torch.empty(width))
            self.glimpse = nn.Parameter(torch.empty(width))
        if time_conditioning:
            self.level = LevelEmbedding(CONDITION_WIDTH)
        if num_classes:
            self.classes = nn.Embedding(num_classes + 1, CONDITION_WIDTH)  # the last one: no class
        if time_conditioning or num_classes:
            self.modulation = nn.Linear(CONDITION_WIDTH, (6 * depth + 2) * width)
        self._checkpointing = False
        self._dropout = dropout
        self._initialise()

    def forward(
        self,
        tokens: Tensor,
        *,
        level: Tensor | None = None,
        documents: Tensor | None = None,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of noisy tokens.

        Args:
            tokens: int64 [B, L] in [0, K), L <= length; not checked.
            level: float [B], logit of alpha, finite. Given if and only if time-conditioned.
            documents: int64 [B, L]; attention only inside equal ids of a row. None: one document.
            condition: int64 [B], classes below num_classes, -1 for none. None: all -1.
            noise: int64 [B, L], what "noise" looks like at each position. Given if and only if
                noise-conditioned. Where a token equals it, the token says next to nothing, and a
                learned vector stands for it, plus its embedding times a learned one that starts
                at 0: the network begins as one for masks.

        Returns:
            [B, L, D], normalised; `head` makes logits of it.

        Raises:
            UserError: the sequence is too long, level or noise is missing or not wanted, or a
                condition was given to a network without classes.
        """
        if (noise is not None) != self.noise_conditioning:
            raise UserError(
                f"noise_conditioning is {self.noise_conditioning}, but the noise tokens were "
                f"{'missing' if noise is None else 'given'}; pass them exactly when it is on"
            )
        x = F.embedding(tokens, self.table)
        if noise is not None:
            hidden = torch.addcmul(self.blank, self.glimpse, x).to(x.dtype)
            x = torch.where((tokens == noise)[..., None], hidden, x)
        return self.encode(x, level=level, documents=documents, condition=condition)

    @property
    def table(self) -> Tensor:
        """The embeddings of the states, [K, D]."""
        return (self.embedding or self.head).weight

    def encode(
        self,
        x: Tensor,
        *,
        level: Tensor | None = None,
        documents: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Like `forward`, from embedded tokens [B, L, D]."""
        length = x.shape[1]
        if length > self.length:
            raise UserError(
                f"a sequence has {length} tokens, the network was built for at most {self.length}; "
                "shorten it or build with a larger length"
            )
        if (level is not None) != self.time_conditioning:
            raise UserError(
                f"time_conditioning is {self.time_conditioning}, but a noise level was "
                f"{'missing' if level is None else 'given'}; pass level exactly when it is on"
            )
        if condition is not None and not self.num_classes:
            raise UserError(
                "a condition was given to a network without classes; train with labelled data "
                "(data.label=FIELD), or leave the condition out"
            )
        shared = self._shared(x, documents)
        modulations = self._modulations(self._condition(level, condition, len(x)))
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = self._run(block, x, *shared, modulation)
        x = self.norm(x)
        return modulate(x, *modulations[-1]) if modulations[-1] else x

    def _shared(self, x: Tensor, documents: Tensor | None) -> tuple[tuple[Tensor, Tensor], Plan]:
        """What all blocks have in common: the rotary tables and the attention plan."""
        head_dim = self.width // self.heads
        kind = x.device.type
        # The dtype in which queries and keys will arrive at the kernel.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        attend = plan(documents, self.backend, device=x.device, dtype=dtype, head_dim=head_dim)
        return rotary_tables(x.shape[1], head_dim, x.device), attend

    def _condition(
        self, level: Tensor | None, condition: Tensor | None, batch: int
    ) -> Tensor | None:
        """What adaLN sees, [B, C]; None without level and classes."""
        known = None if level is None else self.level(level)
        if not self.num_classes:
            return known
        if condition is None:
            condition = torch.full((batch,), -1, device=self.classes.weight.device)
        embedded = self.classes(torch.where(condition < 0, self.num_classes, condition))
        return embedded if known is None else known + embedded

    def _modulations(self, condition: Tensor | None) -> list[tuple[Tensor, ...] | None]:
        """Six [B, 1, D] a block, then (shift, scale) of the final norm; None without condition."""
        if condition is None:
            return [None] * (self.depth + 1)
        flat = self.modulation(condition)
        parts = flat.unflatten(-1, (-1, 1, self.width)).unbind(1)
        return [parts[i : i + 6] for i in range(0, 6 * self.depth + 1, 6)]

    def _run(self, block: nn.Module, *inputs: object) -> Tensor:
        if not (self._checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        keep = self._dropout > 0  # saving the random state is not free
        return cast(
            Tensor, checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=keep)
        )

    def checkpoint_activations(self) -> None:
        """Keep only the input of each block and compute the rest again in the backward pass."""
        self._checkpointing = True

    def compile_blocks(self) -> None:
        """Compile block by block: all blocks share one compilation, state dict keys stay as is."""
        for block in self.blocks:
            block.compile()

    @property
    def num_parameters(self) -> int:
        """Parameters, the head included; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, length: int, training: bool = True) -> float:
        """FLOPs of all matmuls for one token of a sequence, the head on every position included.

        Args:
            length: tokens in the sequence.
            training: count forward and backward (three times the forward), else the forward.
        """
        per_token = sum(p.numel() for p in self.blocks.parameters()) + self.head.weight.numel()
        conditioners = [self.level] if self.time_conditioning else []
        conditioners += [self.modulation] if self.time_conditioning or self.num_classes else []
        per_sequence = sum(p.numel() for m in conditioners for p in m.parameters() if p.ndim > 1)
        scores_and_values = 2 * self.depth * length * self.width
        forward = 2 * (per_token + scores_and_values + per_sequence / length)
        return float(3 * forward if training else forward)

    def _initialise(self) -> None:
        """GPT-2: normal weights, smaller where they write to the residual stream.

        Untied, the head starts at zero. Tied, the logit of a token under its own embedding would
        start near std * D, so wide embeddings start smaller. Either way the first loss is log K.
        """
        for block in self.blocks:
            cast(Block, block).initialise(INIT_STD, INIT_STD / math.sqrt(2 * self.depth))
        if self.embedding is None:
            nn.init.normal_(self.head.weight, std=min(INIT_STD, TIED_LOGIT / self.width))
        else:
            nn.init.zeros_(self.head.weight)
            nn.init.normal_(self.embedding.weight, std=INIT_STD)
        if self.noise_conditioning:
            nn.init.normal_(self.blank, std=INIT_STD)
            nn.init.zeros_(self.glimpse)
        if self.time_conditioning or self.num_classes:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
