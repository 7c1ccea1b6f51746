"""`dlm train`: compose -> tokenizer -> spec -> build -> fit, in one folder that holds it all.

The folder gets `config.yaml` (every key, resolved), `checkpoints/last.ckpt` and `best.ckpt`,
`metrics.csv`, `loss.png` and `summary.json`. The model is built from the spec that its checkpoints
carry, by the function that loads them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dlm.checkpoint import payload
from dlm.cli.arguments import split_arguments
from dlm.cli.common import number, request, say, screen, table, write_text
from dlm.cli.compose import Config, compose
from dlm.cli.runs import choose_folder, holds_run, resumed_config, save_config
from dlm.cli.vocabulary import fill_in
from dlm.data import Source, Tokenizer, class_names, token_counts
from dlm.data.module import TextData
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.evaluation import default_draws
from dlm.spec import build, construct
from dlm.training import (
    Checkpoints,
    DiffusionModule,
    SampleLogger,
    check_trainer,
    quiet_lightning,
)

VALIDATION_SEED = 0  # of the draws of t and noise: the same for every run, so that runs compare
_FOR_TRAINER = ("dlm", "lightning", "pytorch_lightning", "torch")


@final
@dataclass(frozen=True)
class TrainRequest:
    """The keys of `configs/train.yaml`, resolved."""

    data: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    packing: Mapping[str, Any]
    schedule: Mapping[str, Any]
    process: Mapping[str, Any]
    parameterization: Mapping[str, Any]
    backbone: Mapping[str, Any]
    objective: Mapping[str, Any]
    times: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    lr: Mapping[str, Any]
    grid: Mapping[str, Any]
    corrector: Mapping[str, Any]
    plan: Mapping[str, Any]
    order: Mapping[str, Any]
    sampler: Mapping[str, Any]
    trainer: Mapping[str, Any]
    callbacks: Mapping[str, Any] | None
    logger: Mapping[str, Any] | None
    vocab: Mapping[str, int | str | None]
    denoiser: Mapping[str, Any]
    name: str
    run_dir: str
    resume: bool
    seed: int
    length: int
    batch_size: int
    condition_dropout: float
    num_workers: int
    draws: int | None
    compile: bool
    activation_checkpointing: bool
    trust: Sequence[str]
    sample: Mapping[str, Any] | None

    def part(self, name: str, **more: Any) -> Any:
        """Build a node of this config; `more` are arguments that exist only at run time."""
        spec = {**getattr(self, name), **more}
        return build(spec, trust=(*_FOR_TRAINER, *self.trust), path=name)


def run(arguments: Sequence[str]) -> None:
    """Train, and say what came out.

    Raises:
        UserError: a config, data or a folder that does not fit, or a loss that is not finite.
    """
    overrides, folders = split_arguments(arguments)
    config = compose("train", overrides, folders)
    folder = choose_folder(
        config.plain("run_dir"), str(config.plain("name")), config.plain("resume") is True
    )
    if holds_run(folder):
        values, overrides = resumed_config(folder, overrides, folders)
        prepared = values.pop("prepared")
        keys = request(TrainRequest, {**values, "run_dir": str(folder), "resume": True})
        tokenizer = _same_tokenizer(keys, prepared)
    else:
        keys, tokenizer = _complete(config, folder)
    check_trainer(keys.trainer)
    quiet_lightning()
    _train(keys, tokenizer, folder, overrides)


def _same_tokenizer(keys: TrainRequest, prepared: Mapping[str, str]) -> Tokenizer:
    """The tokenizer of a run that goes on; a warning if the training text is not what it was."""
    trust = ("dlm", *keys.trust)
    source = build(keys.data, trust=trust, path="data")
    maker = build(keys.tokenizer, trust=trust, path="tokenizer")
    tokenizer = maker.load(source, mask=keys.vocab["mask_id"] is not None)
    now = _prepared(source, tokenizer)
    if now["tokenizer"] != prepared["tokenizer"]:
        raise UserError(
            "the tokenizer made now is not the one this run began with: its data or its files have "
            "changed, and the same ids would mean other text; restore them, or start a new run"
        )
    if now["data"] != prepared["data"]:
        say(screen(), "note: the training text has changed since this run began, or was copied")
    return tokenizer


def _prepared(source: Source, tokenizer: Tokenizer) -> dict[str, str]:
    """What a run was made from, to be compared when it goes on."""
    return {"data": source.fingerprint("train"), "tokenizer": tokenizer.fingerprint}


def _complete(config: Config, folder: Path) -> tuple[TrainRequest, Tokenizer]:
    """Fill in what the program finds out: the vocabulary, the conditioning, the folder."""
    if config.written()["vocab.size"] != "???":
        raise UserError("vocab is filled in from the tokenizer; leave it out")
    trust = ("dlm", *config.plain("trust"))
    source = build(config.plain("data"), trust=trust, path="data")
    maker = build(config.plain("tokenizer"), trust=trust, path="tokenizer")
    tokenizer = maker.load(source, mask=config.mentions("process", "vocab.mask_id"))
    fill_in(
        config, tokenizer.size, tokenizer.mask_id, lambda: token_counts(source, tokenizer).tolist()
    )
    config.set("vocab.num_classes", len(class_names(source, tokenizer)))
    config.set("run_dir", str(folder))
    return request(TrainRequest, config.plain()), tokenizer


def _train(
    keys: TrainRequest, tokenizer: Tokenizer, folder: Path, overrides: Sequence[str]
) -> None:
    source = keys.part("data")
    classes = _classes(keys, source, tokenizer)
    data = TextData(
        source,
        tokenizer,
        keys.part("packing"),
        keys.length,
        keys.batch_size,
        keys.seed,
        keys.num_workers,
        classes,
    )
    data.setup("fit")
    trainer = _make_trainer(keys, tokenizer, folder)
    module = _make_module(keys, tokenizer, data, trainer)
    made_from = _prepared(source, tokenizer)
    save_config(folder, {**vars(keys), "prepared": made_from}, overrides)  # all could be built
    last = folder / "checkpoints" / "last.ckpt"
    say(screen(), _headline(keys, module.denoiser, data))
    begin = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None)
    except SystemExit:  # how Lightning ends after ctrl-c
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    seconds = time.perf_counter() - begin
    if data.validation_blocks is not None and not _validated_at_the_end(trainer, module):
        trainer.validate(module, datamodule=data, verbose=False)
    _finish(keys, trainer, module, folder, seconds)


def _classes(keys: TrainRequest, source: Source, tokenizer: Tokenizer) -> list[str]:
    """The names of the classes, which the network must have been built for."""
    if not 0 <= keys.condition_dropout <= 1:
        raise UserError(f"condition_dropout must be in [0, 1], got {keys.condition_dropout}")
    classes = class_names(source, tokenizer)
    built_for = keys.backbone.get("num_classes", 0)
    if built_for != len(classes):
        raise UserError(
            f"the network takes {built_for} classes, the data has {len(classes)}; leave "
            "backbone.num_classes to the program, and label the data with data.label=FIELD"
        )
    return classes


def _make_trainer(keys: TrainRequest, tokenizer: Tokenizer, folder: Path) -> Trainer:
    built = [*keys.part("callbacks").values()] if keys.callbacks else []
    callbacks = [callback for callback in built if callback is not None]  # callbacks.ema=null
    if keys.sample is not None:
        parts = {"sampler": keys.part("sampler"), "tokenizer": tokenizer, "folder": str(folder)}
        callbacks.append(construct(SampleLogger, {**keys.sample, **parts}, path="sample"))
    try:
        loggers = [*keys.part("logger").values()] if keys.logger else False
        return keys.part("trainer", callbacks=callbacks, logger=loggers)
    except (MisconfigurationException, TypeError) as error:  # devices=none is a TypeError
        raise UserError(f"trainer: {error}") from error
    except ModuleNotFoundError as error:  # a logger whose package is optional
        raise UserError(f"logger: {error}") from error


def _make_module(
    keys: TrainRequest, tokenizer: Tokenizer, data: TextData, trainer: Trainer
) -> DiffusionModule:
    torch.manual_seed(keys.seed)
    denoiser: Denoiser = build(keys.denoiser, trust=keys.trust, path="denoiser")
    network: Any = denoiser.backbone  # a backbone of another package may lack these two
    if keys.activation_checkpointing:
        network.checkpoint_activations()
    if keys.compile:
        network.compile_blocks()
    validation, train = data.validation_blocks, data.train_blocks
    sequences = 0 if validation is None else len(validation)
    limit = trainer.limit_val_batches
    limited = isinstance(limit, int) or limit != 1.0  # bits per byte needs all of the split
    meta = {
        "length": keys.length,
        "packing": keys.packing,
        "data": keys.data,
        "precision": str(keys.trainer["precision"]),
        "seed": keys.seed,
        "draws": keys.draws,
        "validation_seed": VALIDATION_SEED,
    } | ({"classes": data.classes} if data.classes else {})
    return DiffusionModule(
        denoiser,
        keys.part("objective"),
        keys.part("times"),
        keys.part("optimizer"),
        keys.part("lr"),
        seed=keys.seed,
        batch_size=keys.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        draws=default_draws(sequences) if keys.draws is None else keys.draws,
        num_bytes=None if validation is None or limited else validation.num_bytes,
        validation_seed=VALIDATION_SEED,
        condition_dropout=keys.condition_dropout,
        epoch_size=None if train is None else len(train),
        payload=payload(keys.denoiser, tokenizer, meta),
    )


def _headline(keys: TrainRequest, denoiser: Denoiser, data: TextData) -> str:
    parameters = sum(p.numel() for p in denoiser.parameters())
    blocks = data.train_blocks
    amount = "a stream" if blocks is None else f"{blocks.num_tokens:,} tokens"
    return (
        f"{keys.run_dir}: {type(denoiser.process).__name__}, {parameters:,} parameters, "
        f"{denoiser.process.num_states:,} states, training on {amount}"
    )


def _validated_at_the_end(trainer: Trainer, module: DiffusionModule) -> bool:
    batches = trainer.global_step * trainer.accumulate_grad_batches
    interval = trainer.val_check_interval
    return module.likelihood is not None and isinstance(interval, int) and batches % interval == 0


def _finish(
    keys: TrainRequest, trainer: Trainer, module: DiffusionModule, folder: Path, seconds: float
) -> None:
    """Write `summary.json`; show the result and what to do next."""
    summary = _summary(trainer, module, seconds)
    path = folder / "summary.json"
    if not module.metrics and path.is_file():  # nothing was left to do: keep the speed there was
        earlier = json.loads(path.read_text("utf-8"))
        summary |= {name: earlier[name] for name in ("tokens_per_second", "seconds")}
    console = screen()
    if trainer.is_global_zero:
        write_text(str(path), json.dumps(summary, indent=2, allow_nan=False) + "\n")
    low, high = number(summary["ppl_low"], 2), number(summary["ppl_high"], 2)
    rows = {
        "nelbo (nats/token)": f"{number(summary['nelbo'])}   best: {number(summary['best_nelbo'])}",
        "perplexity": f"{number(summary['ppl'], 2)}   95 %: {low} to {high}",
        "bits per byte": number(summary["bits_per_byte"]),
        "steps": f"{summary['steps']:,}",
        "tokens seen": f"{summary['tokens_seen']:,}",
        "tokens per second": number(summary["tokens_per_second"], 0),
        "seconds": number(summary["seconds"], 0),
    }
    console.print(table(f"{folder}, validation", rows))
    best = folder / "checkpoints" / "best.ckpt"
    steps = 2 * keys.trainer["max_steps"]
    say(console, "try next:")
    say(console, f"  dlm evaluate checkpoint={best} split=test")
    say(console, f"  dlm generate checkpoint={best} num=2")
    say(console, f"  dlm train run_dir={folder} resume=true trainer.max_steps={steps}")


def _summary(trainer: Trainer, module: DiffusionModule, seconds: float) -> dict[str, Any]:
    bound = {} if module.likelihood is None else module.likelihood.json()
    names = ("nelbo", "nelbo_stderr", "ppl", "ppl_low", "ppl_high", "bits_per_byte")
    best = [c.best for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
    return {
        **{name: bound.get(name) for name in names},
        "best_nelbo": next((value for value in best if math.isfinite(value)), None),
        "steps": trainer.global_step,
        "tokens_seen": module.tokens_seen,
        "tokens_per_second": module.speed.tokens_per_second,
        "seconds": seconds,
    }
