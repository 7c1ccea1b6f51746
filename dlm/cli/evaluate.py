"""`dlm evaluate checkpoint=P`: the likelihood bound, on the screen and as JSON.

Without further keys it repeats the validation of the training: data, packing, length, precision,
draws and their seed come from the checkpoint, and so does the number. A model that knows classes
is given those of the data, unless `condition=null`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from rich.table import Table

from dlm.checkpoint import weights_hash
from dlm.cli.common import (
    as_text,
    check_outputs,
    compose_arguments,
    number,
    progress_bar,
    request,
    say,
    screen,
    table,
    write_text,
)
from dlm.cli.saved import Saved
from dlm.data import Batch, Blocks, batches
from dlm.errors import UserError
from dlm.evaluation import Bound, Likelihood, default_draws, evaluate


@final
@dataclass(frozen=True)
class EvaluateRequest:
    """The keys of `configs/evaluate.yaml`; None is what the checkpoint says."""

    checkpoint: str
    split: str
    output: str | None
    condition: Literal["labels"] | None
    draws: int | None
    seed: int | None
    steps: int | None
    bound: Bound
    precision: str | None
    batch_size: int
    device: str | None
    trust: Sequence[str]
    data: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")


def run(arguments: Sequence[str]) -> None:
    """Evaluate, show and write.

    Raises:
        UserError: a checkpoint, data or a setting that does not fit.
    """
    config = compose_arguments("evaluate", arguments).plain()
    keys = request(EvaluateRequest, {**config, "precision": as_text(config["precision"])})
    check_outputs(keys.output)
    saved = Saved.of(keys)
    denoiser, meta = saved.loaded.denoiser, saved.loaded.meta
    labels = saved.classes if keys.condition == "labels" else None
    blocks = saved.blocks(labels)
    if labels and blocks[0].condition < 0:
        raise UserError(
            "the data has no classes to give to the model; name their field by data.label=FIELD, "
            "or add condition=null for the bound without them"
        )
    draws = meta["draws"] if keys.draws is None else keys.draws
    draws = default_draws(len(blocks)) if draws is None else draws
    likelihood = evaluate(
        denoiser,
        _with_progress(blocks, keys, draws * (1 if keys.steps is None else 2)),
        num_bytes=blocks.num_bytes,
        num_sequences=len(blocks),
        draws=draws,
        seed=meta["validation_seed"] if keys.seed is None else keys.seed,
        steps=keys.steps,
        bound=keys.bound,
        precision=saved.precision,
    )
    console = screen()
    console.print(likelihood_table(f"{keys.checkpoint}, {keys.split} split", likelihood))
    if keys.output is not None:
        record = {
            **likelihood.json(),
            "split": keys.split,
            "data": saved.data,
            "checkpoint": weights_hash(denoiser),
            "condition": keys.condition if saved.classes else None,
        }
        write_text(keys.output, json.dumps(record, indent=2, allow_nan=False) + "\n")
        say(console, f"wrote {keys.output}")


def likelihood_table(title: str, result: Likelihood) -> Table:
    """The bound, its interval and what was counted."""
    stderr = result.nelbo_stderr
    half = None if stderr is None else 1.959964 * stderr
    low, high = (None, None) if half is None else (result.nelbo - half, result.nelbo + half)
    rows = {
        "nelbo (nats/token)": f"{number(result.nelbo)}   95 %: {number(low)} to {number(high)}",
        "  of it prior": number(result.prior_kl),
        "  of it reconstruction": number(result.reconstruction),
        "perplexity": f"{number(result.ppl, 2)}   "
        f"95 %: {number(result.ppl_low, 2)} to {number(result.ppl_high, 2)}",
        "bits per byte": f"{number(result.bits_per_byte)}   "
        f"95 %: {number(result.bits_per_byte_low)} to {number(result.bits_per_byte_high)}",
        "tokens": f"{result.tokens:,} in {result.sequences:,} sequences",
        "counted": result.counting,
        "draws, seed": f"{result.draws} a sequence, seed {result.seed}",
    }
    if not result.comparable:
        rows["comparable"] = "no: valid, not tight"
    if result.steps is not None:
        rows[f"bound of {result.steps} steps"] = (
            f"{number(result.nelbo_steps)}   perplexity {number(result.ppl_steps, 2)}"
        )
    return table(title, rows)


def _with_progress(blocks: Blocks, keys: EvaluateRequest, draws: int) -> Iterator[Batch]:
    with progress_bar("evaluate", blocks.num_tokens * draws) as advance:
        for batch in batches(blocks, keys.batch_size):
            yield batch if keys.condition == "labels" else batch._replace(condition=None)
            advance(int(batch.valid.sum()) * draws)
