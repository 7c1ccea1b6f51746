"""Models of a few hundred states for every entry of configs/, and their losses, dense and fused."""

import torch
from torch import Tensor, nn

from dlm import Denoiser
from dlm.objectives import Elbo, Objective
from dlm.parameterizations import Parameterization
from dlm.processes import Process, State, pack_weights
from dlm.random import Key
from dlm.spec import build
from tests.conformance.registry import composed

BATCH, LENGTH, WIDTH, SYMBOLS = 4, 24, 16, 300
ELBO = Elbo()


def process_of(name: str, symbols: int = SYMBOLS) -> Process:
    """The process of configs/ on so many tokens."""
    config = composed(f"process={name}")
    masked = config.mentions("process", "vocab.mask_id")
    config.set("vocab.size", symbols + masked)
    config.set("vocab.mask_id", symbols if masked else None)
    config.set("vocab.unigram", pack_weights([1.0 + i for i in range(symbols)]))
    made = build(config.plain("process"), trust=("dlm",))
    assert isinstance(made, Process)
    return made


class Body(nn.Module):
    """Looks only at the token: what matters here comes after the network."""

    def __init__(self, process: Process, tied: bool = False) -> None:
        super().__init__()
        self.time_conditioning, self.length = process.time_conditioned, LENGTH
        self.noise_conditioning = process.noise_conditioned
        self.embedding = nn.Embedding(process.num_states, WIDTH)
        self.head = nn.Linear(WIDTH, process.num_states, bias=False)
        nn.init.normal_(self.head.weight)
        if tied:
            self.embedding.weight = self.head.weight

    def forward(self, tokens: Tensor, **_: Tensor) -> Tensor:
        return self.embedding(tokens).sin()

    def flops_per_token(self, length: int, training: bool = True) -> float:
        return 0.0


class Loss(nn.Module):
    """The summed loss as a module, which is how wrappers want it."""

    def __init__(self, denoiser: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, x0: Tensor, state: State, t: Tensor, weight: Tensor) -> Tensor:
        return self.objective(self.denoiser, x0, state, t, weight).loss


Batch = tuple[Tensor, State, Tensor, Tensor]


def model(process: Process, parameterization: Parameterization, tied: bool = False) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Body(process, tied), process, parameterization)


def batch(process: Process, rows: int = BATCH, objective: Objective = ELBO) -> Batch:
    """Clean and noisy tokens, times, factors of which some are 0."""
    generator = torch.Generator().manual_seed(1)
    clean = process.num_states - (process.mask_id is not None)
    x0 = torch.randint(0, clean, (rows, LENGTH), generator=generator)
    t = objective.snap((torch.arange(rows).double() + 0.3) / rows)
    state = process.corrupt(x0, t[:, None], key=Key(0, torch.arange(rows)))
    weight = torch.rand(rows, LENGTH, generator=generator)
    return x0, state, t, torch.where(weight < 0.2, 0.0, weight)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def dense(denoiser: Denoiser, objective: Objective, data: Batch) -> Tensor:
    """The same sum the usual way, all logits at once, in the dtype of the model."""
    x0, state, t, weight = data
    losses = objective.rows(denoiser(state, t), x0)
    return (torch.where(denoiser.process.active(state), losses, 0.0) * weight.double()).sum()


def fused(denoiser: Denoiser, objective: Objective, data: Batch) -> Tensor:
    return objective(denoiser, *data).loss


def assert_near(mine: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    """Every gradient within this share of its largest entry."""
    assert mine.keys() == exact.keys()
    for name, gradient in exact.items():
        error = (mine[name].double() - gradient.double()).abs().max()
        assert error <= tolerance * gradient.abs().max(), (name, error / gradient.abs().max())
