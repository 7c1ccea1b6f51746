"""A judge: what a causal language model makes of generated text.

Any causal model of transformers, from a folder on disk. A text is scored as it stands, without the
special tokens of the judge: -log p(token | those before it), summed. The first token is given the
judge's BOS, or its EOS where it has none (GPT-2), so it is scored too; `Judge.first` says which.
Words like `<|endoftext|>` in a text are read as the characters they are.

Nats per token depend on how the judge cuts text into tokens, nats per byte do not. A judge rewards
what it finds likely: text that repeats itself, or says little, scores well. Read its perplexity
beside the entropy of the samples (`dlm.evaluation.quality`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.errors import UserError


class Scores(NamedTuple):
    """Of each text: nats, float64 (N,); scored tokens of the judge and UTF-8 bytes, int64 (N,)."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor


@final
class Judge:
    """A causal language model that scores texts.

    Attributes:
        context: the longest text it reads, in its tokens, `first` included; None: any.
        first: the special token that stands before every text.

    Args:
        path: a folder in the format of transformers, with its tokenizer. Nothing is downloaded, no
            code of the folder is run.
        device: where it runs.
        dtype: of its weights; in bfloat16 a text's nats vary with its batch by about 2e-3 of them,
            in float32 by 1e-6.

    Raises:
        UserError: there is no such folder, it holds no causal language model, or the judge has
            neither BOS nor EOS.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds of import

        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"there is no folder {str(path)!r} with a judge; see docs/quality.md")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=dtype
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{str(path)!r} holds no causal language model: {reason}") from error
        first = self._tokenizer.bos_token or self._tokenizer.eos_token
        if first is None:
            raise UserError(
                f"the judge {str(path)!r} has neither BOS nor EOS to put before the first token; "
                "take another"
            )
        self._model = torch.nn.Module.to(model, device).eval()  # theirs hides its arguments' types
        self._device = torch.device(device)
        self.first = str(first)
        self.context: int | None = getattr(
            model.config.get_text_config(), "max_position_embeddings", None
        )

    @torch.no_grad()
    def score(self, texts: Sequence[str], batch_size: int = 16) -> Scores:
        """Score texts.

        Args:
            texts: any; an empty one costs nothing.
            batch_size: texts at a time, of similar length; changes results by rounding only.

        Raises:
            UserError: a text longer than the judge's context: nothing is cut silently.
        """
        encoded = [self._encode(text) for text in texts]
        longest = 1 + max((len(ids) for ids in encoded), default=0)
        if self.context is not None and longest > self.context:
            raise UserError(
                f"a text has {longest} tokens of the judge, {self.first} included, and it reads "
                f"{self.context} at most; cut the text first"
            )
        nats = torch.zeros(len(texts), dtype=torch.float64)
        order = sorted((n for n, ids in enumerate(encoded) if ids), key=lambda n: len(encoded[n]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            nats[batch] = self._nats([encoded[n] for n in batch])
        tokens = torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)
        sizes = torch.tensor([len(text.encode()) for text in texts], dtype=torch.int64)
        return Scores(nats, tokens, sizes)

    def _encode(self, text: str) -> list[int]:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return self._tokenizer(text, **plain)["input_ids"]

    def _nats(self, rows: list[list[int]]) -> Tensor:
        first = self._tokenizer.convert_tokens_to_ids(self.first)
        width = 1 + max(len(row) for row in rows)
        ids = torch.full((len(rows), width), first)
        seen = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, 1 : 1 + len(row)] = torch.tensor(row)
            seen[n, : 1 + len(row)] = 1
        ids, seen = ids.to(self._device), seen.to(self._device)
        logits = self._model(input_ids=ids, attention_mask=seen, use_cache=False).logits
        nats = []
        for n, row in enumerate(rows):  # one at a time: the table in float32 is large
            wanted = ids[n, 1 : 1 + len(row)]
            loss = torch.nn.functional.cross_entropy(
                logits[n, : len(row)].float(), wanted, reduction="none"
            )
            nats.append(loss.double().sum())
        return torch.stack(nats).cpu()
