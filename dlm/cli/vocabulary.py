"""What the program finds out before a model is built: its vocabulary, and if it sees the level."""

from __future__ import annotations

from dlm.cli.compose import Config
from dlm.errors import UserError
from dlm.processes import Process
from dlm.spec import TARGET, resolve_class


def fill_in(config: Config, size: int, mask_id: int | None) -> None:
    """Set the vocabulary, and the conditioning to what the process needs if it is null."""
    config.set("vocab.size", size)
    config.set("vocab.mask_id", mask_id)
    if config.plain("denoiser.time_conditioning") is None:
        process = resolve_class(
            config.plain(f"process.{TARGET}"), trust=config.plain("trust"), path="process"
        )
        if not issubclass(process, Process):
            raise UserError(f"process.{TARGET} must be a process, got {process.__name__}")
        config.set("denoiser.time_conditioning", process.time_conditioned)
