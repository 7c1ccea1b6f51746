"""Classifiers of noisy text, for guidance: train one, measure it, keep it in a folder.

A classifier belongs to a noise process and a tokenizer, not to a denoiser: it guides any model that
shares both, whatever its schedule. A folder holds `classifier.json` (how to build it, the names of
the classes, the process, the tokenizer's hash) and `model.safetensors`.

The loss is -log p_t(y | z) at even levels, z corrupted by the very object that corrupts the text of
the denoiser; its minimiser is the posterior that the formulas of `dlm.guidance` ask for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from dlm.checkpoint import Loaded
from dlm.data import Blocks, collate
from dlm.denoiser import shown_level
from dlm.errors import UserError
from dlm.files import replace_text
from dlm.networks import TextClassifier
from dlm.processes import Process
from dlm.processes.prediction import pick
from dlm.random import Key
from dlm.schedules import Linear
from dlm.spec import build
from dlm.times import LowDiscrepancy

FORMAT = 1
_NAMES = ("classifier.json", "model.safetensors")


class LoadedClassifier(NamedTuple):
    """A classifier in evaluation mode, on the CPU, and what class 0, 1, ... are called."""

    classifier: TextClassifier
    classes: list[str]


def fit(
    classifier: TextClassifier,
    process: Process,
    blocks: Blocks,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train on labelled rows, on the device of the classifier, with AdamW and a linear decay.

    Args:
        classifier: changed in place; put in evaluation mode at the end.
        process: the noise.
        blocks: rows with classes, drawn with replacement.
        steps: optimizer steps.
        batch_size: rows a step.
        lr: learning rate at the start.
        seed: of rows, times and noise.
        on_step: called with the number of steps done and the loss in nats.

    Raises:
        UserError: fewer than one step, or rows without a class.
    """
    if steps < 1 or batch_size < 1:
        raise UserError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, betas=(0.9, 0.98))
    classifier.train()
    for step in range(steps):
        counters = torch.arange(step * batch_size, (step + 1) * batch_size)
        t, _ = LowDiscrepancy()(counters, seed=seed, batch_size=batch_size)
        places = (Key(seed, counters).fold("row").uniform() * len(blocks)).long()
        log_probs, labels = _judged(classifier, process, blocks, places, t, counters, seed)
        loss = -pick(log_probs, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, loss.item())
    classifier.eval()


@torch.no_grad()
def accuracy(
    classifier: TextClassifier,
    process: Process,
    blocks: Blocks,
    alphas: Sequence[float],
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[float, float]:
    """Share of rows whose class is the most likely one, by the share alpha of tokens that survive.

    Raises:
        UserError: rows without a class.
    """
    found: dict[float, float] = {}
    for alpha in alphas:
        t = process.schedule.inverse(torch.tensor(alpha, dtype=torch.float64))
        right = 0
        for places in torch.arange(len(blocks)).split(batch_size):
            times = t.expand(len(places))
            log_probs, labels = _judged(classifier, process, blocks, places, times, places, seed)
            right += int((log_probs.argmax(-1) == labels).sum())
        found[alpha] = right / len(blocks)
    return found


def save(
    classifier: TextClassifier,
    folder: str | Path,
    *,
    spec: Mapping[str, Any],
    classes: Sequence[str],
    model: Loaded,
) -> None:
    """Write the two files.

    Args:
        classifier: the network.
        folder: new, or that of an earlier classifier, which is replaced.
        spec: arguments of `TextClassifier`.
        classes: names of the classes.
        model: of the process and the tokenizer it was trained with.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not {entry.name for entry in folder.iterdir()} <= set(_NAMES):
        raise UserError(f"output {str(folder)!r} holds something else; name a new folder")
    record = {
        "format": FORMAT,
        "classifier": dict(spec),
        "classes": list(classes),
        "process": model.meta["spec"]["process"],
        "tokenizer": model.tokenizer.fingerprint,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = classifier.state_dict().items()
        weights = {name: x.detach().cpu().contiguous() for name, x in state}
        safetensors.torch.save_file(weights, folder / _NAMES[1])
        replace_text(folder / _NAMES[0], json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {str(folder)!r}: {error.strerror}") from error


def load_classifier(path: str | Path, model: Loaded) -> LoadedClassifier:
    """Load a classifier to guide a model.

    Raises:
        UserError: there is none, it is damaged, or it was trained with another tokenizer or process
            than the model.
    """
    folder = Path(path).expanduser()
    try:
        record = json.loads((folder / _NAMES[0]).read_text("utf-8"))
        weights = safetensors.torch.load_file(folder / _NAMES[1])
        if record["format"] != FORMAT:
            raise UserError(f"the classifier {str(folder)!r} has format {record['format']!r}")
        classifier = TextClassifier(**record["classifier"])
        classifier.load_state_dict(weights, strict=True)
        process, classes = build(record["process"]), [str(name) for name in record["classes"]]
        tokenizer = record["tokenizer"]
    except FileNotFoundError as error:
        raise UserError(
            f"there is no classifier in {str(folder)!r}; scripts/train_classifier.py makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the classifier {str(folder)!r} is damaged: {error}") from error
    if tokenizer != model.tokenizer.fingerprint:
        raise UserError(f"the classifier {str(folder)!r} was trained with another tokenizer")
    if process.on(Linear()) != model.denoiser.process.on(Linear()):
        raise UserError(
            f"the classifier {str(folder)!r} was trained with the process {process}, the model "
            f"with {model.denoiser.process}"
        )
    return LoadedClassifier(classifier.eval(), classes)


def _judged(
    classifier: TextClassifier,
    process: Process,
    blocks: Blocks,
    places: Tensor,
    t: Tensor,
    counters: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, C) of some rows corrupted to times t (B,), and their classes (B,)."""
    batch = collate([blocks[i] for i in places.tolist()], counters.tolist())
    if batch.condition is None:
        raise UserError("the data has no classes; label it with data.label=FIELD")
    device = classifier.table.device
    tokens, labels, t = batch.tokens.to(device), batch.condition.to(device), t.to(device)
    key = Key(seed, counters.to(device)).fold("classifier")
    state = process.corrupt(tokens, t[:, None], key=key)
    return classifier(classifier.table[state.tokens], shown_level(process, t)), labels
