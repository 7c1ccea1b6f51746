"""`dlm validate`: would this config train? Composed and built, without memory, data or network.

The model is built on the meta device. Sources, tokenizers, objective, optimizer and the rest are
constructed, which checks their arguments, and read nothing. The size of the vocabulary is
`tokenizer.vocab_size` where there is one (plus a mask, if the process wants one), else a
placeholder that is said to be one; `vocab.size=N` sets it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from dlm.cli.common import compose_arguments, say, screen, table
from dlm.cli.compose import Config
from dlm.cli.vocabulary import fill_in
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.spec import build
from dlm.training import check_trainer

PLACEHOLDER = 50_257  # states of GPT-2, the vocabulary of most published models
_PARTS = ("data", "tokenizer", "packing", "objective", "times", "optimizer", "lr", "sampler")


def run(arguments: Sequence[str]) -> None:
    """Build, and show shapes and sizes.

    Raises:
        UserError: a part that cannot be built.
    """
    config = compose_arguments("train", arguments)
    origin = _fill_vocabulary(config)
    if config.plain("run_dir") is None:
        config.set("run_dir", "runs/validate")
    values = config.plain()
    trust = ("dlm", *values["trust"])
    parts = {part: build(values[part], trust=trust, path=part) for part in _PARTS}
    check_trainer(values["trainer"])
    with torch.device("meta"):
        denoiser = build(values["denoiser"], trust=values["trust"], path="denoiser")
    if not isinstance(denoiser, Denoiser):
        raise UserError("denoiser._target_ must be dlm.Denoiser")
    parts["objective"].require(denoiser.process)
    console = screen()
    console.print(table("parameters", _shapes(denoiser)))
    length, size = values["length"], values["batch_size"]
    rows = {
        "process": f"{denoiser.process}",
        "parameterization": type(denoiser.parameterization).__name__,
        "sees the noise level": "yes" if denoiser.time_conditioning else "no",
        "states": f"{denoiser.process.num_states:,} ({origin})",
        "batch": f"{size} x {length} tokens a device, logits {size} x {length} x "
        f"{denoiser.process.num_states:,}",
        "parameters": f"{sum(p.numel() for p in denoiser.parameters()):,}",
        "FLOPs per token": f"{denoiser.backbone.flops_per_token(length):.3g} in training, "
        f"{denoiser.backbone.flops_per_token(length, training=False):.3g} in a forward pass",
    }
    console.print(table("model", rows))
    say(console, "this config is fine; data, tokenizer and devices were not touched")


def _fill_vocabulary(config: Config) -> str:
    """Set the vocabulary; says where its size comes from."""
    given = config.written()["vocab.size"]
    mask = config.mentions("process", "vocab.mask_id")
    if given != "???":
        size, origin = given, "vocab.size"
    else:
        known = config.plain("tokenizer").get("vocab_size")
        size, origin = (known or PLACEHOLDER) + mask, "tokenizer.vocab_size"
        if known is None:
            origin = "a placeholder: the tokenizer is not loaded here; vocab.size=N sets it"
    if not isinstance(size, int) or isinstance(size, bool) or size < 2:
        raise UserError(f"vocab.size must be a number of states from 2 on, got {size!r}")
    fill_in(config, size, size - 1 if mask else None, lambda: [1.0] * size)
    return origin


def _shapes(denoiser: nn.Module) -> dict[str, str]:
    """Parameters by the part they belong to, equal blocks once."""
    rows: dict[str, str] = {}
    for name, parameter in denoiser.named_parameters():
        name = re.sub(r"\.\d+\.", ".*.", name.removeprefix("backbone."))
        rows[name] = " x ".join(str(n) for n in parameter.shape)
    return rows
