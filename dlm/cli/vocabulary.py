"""What the program finds out before a model is built: its vocabulary, and what it has to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlm.cli.compose import Config
from dlm.errors import UserError
from dlm.processes import Process, pack_weights
from dlm.spec import TARGET, resolve_class

CONDITIONS = {
    "denoiser.time_conditioning": "time_conditioned",
    "denoiser.noise_conditioning": "noise_conditioned",
}


def fill_in(
    config: Config, size: int, mask_id: int | None, counts: Callable[[], Iterable[float]]
) -> None:
    """Set the vocabulary, and the conditionings to what the process needs where they are null.

    Args:
        config: of `dlm train`.
        size: states, MASK counted.
        mask_id: MASK, None without.
        counts: how often each state occurs in the training data; called if the process asks.
    """
    config.set("vocab.size", size)
    config.set("vocab.mask_id", mask_id)
    asked = config.mentions("process", "vocab.unigram")
    config.set("vocab.unigram", pack_weights([n + 1 for n in counts()]) if asked else None)
    process = resolve_class(
        config.plain(f"process.{TARGET}"), trust=config.plain("trust"), path="process"
    )
    if not issubclass(process, Process):
        raise UserError(f"process.{TARGET} must be a process, got {process.__name__}")
    for key, attribute in CONDITIONS.items():
        if config.plain(key) is None:
            config.set(key, getattr(process, attribute))
