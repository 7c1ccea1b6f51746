"""`dlm export checkpoint=P output=DIR [dtype=bf16]`: a model folder that anyone can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch

from dlm.checkpoint import export
from dlm.cli.common import compose_arguments, request, say, screen

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@final
@dataclass(frozen=True)
class ExportRequest:
    """The keys of `configs/export.yaml`."""

    checkpoint: str
    output: str
    dtype: Literal["float32", "bf16"]
    trust: Sequence[str]


def run(arguments: Sequence[str]) -> None:
    """Write the folder and say how to use it.

    Raises:
        UserError: see `dlm.checkpoint.export`.
    """
    keys = request(ExportRequest, compose_arguments("export", arguments).plain())
    export(keys.checkpoint, keys.output, dtype=_DTYPES[keys.dtype], trust=keys.trust)
    say(screen(), f"wrote {keys.output}; try: dlm generate checkpoint={keys.output}")
