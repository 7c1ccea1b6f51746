"""`dlm generate checkpoint=P`: texts on the screen, and as JSON lines.

Text n is a function of the checkpoint, the sampler, what was asked for, the seed and n: neither
`num` nor `batch_size` changes it. Of a file of prompts, line l has the rows (l - 1) 2^32 + n of the
seed: what stands in other lines changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, final

import torch
from rich.console import Console

from dlm.checkpoint import Loaded, load, weights_hash
from dlm.cli.blocks import Blocks, blocks_spec
from dlm.cli.common import (
    check_outputs,
    compose_arguments,
    pick_device,
    progress_bar,
    request,
    say,
    screen,
    write_text,
    writing,
)
from dlm.cli.guide import Guidance, guided
from dlm.cli.prompts import Allowed, Asked, at_line, make_template, read_prompts
from dlm.cli.stream import BlockPrinter
from dlm.errors import UserError
from dlm.evaluation.generation import Origin, Record, record_samples, write_records
from dlm.evaluation.trace import Trace, trace_page
from dlm.random import Key
from dlm.samplers import OnStep, Sampler, Samples, Step
from dlm.samplers.prompts import Packed, Template, pack
from dlm.spec import build, construct

TRACED = 8  # texts on a page of trace=


@final
@dataclass(frozen=True)
class GenerateRequest:
    """The keys of `configs/generate.yaml`."""

    checkpoint: str
    num: int
    prompt: str | None
    suffix: str | None
    infill: str | None
    prompts: str | None
    allow: str | None
    condition: str | None
    guidance: Mapping[str, Any]
    length: int | None
    blocks: Mapping[str, Any]
    stream: bool
    seed: int
    output: str | None
    trace: str | None
    batch_size: int
    device: str | None
    trust: Sequence[str]
    sampler: Mapping[str, Any]
    grid: Mapping[str, Any]  # this and what follows stand inside the sampler
    corrector: Mapping[str, Any]
    plan: Mapping[str, Any]
    order: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch_size < 1:
            raise UserError(
                "num and batch_size must be at least 1, "
                f"got num={self.num} and batch_size={self.batch_size}"
            )
        given = [name for name in ("prompt", "suffix", "infill") if getattr(self, name) is not None]
        if self.prompts is not None and given:
            raise UserError(
                f"prompts is a file of them; write {' and '.join(given)} into its lines"
            )
        if self.stream and self.blocks["size"] is None:
            raise UserError("stream=true shows blocks as they are finished; add blocks.size=64")

    def asked(self) -> list[Asked]:
        """What is asked for, `num` texts of each."""
        if self.prompts is not None:
            return read_prompts(self.prompts, self.length, self.condition)
        return [Asked(self.prompt, self.suffix, self.infill, self.length, self.condition)]


class Text(NamedTuple):
    """One text to write.

    row: of the key. condition: the number of its class, -1 for none.
    """

    asked: Asked
    template: Template
    row: int
    condition: int

    @property
    def name(self) -> str:
        """What the screen calls it."""
        name = f"text {self.row - self.asked.first_row}"
        return name if self.asked.line is None else f"line {self.asked.line}, {name}"


def run(arguments: Sequence[str]) -> None:
    """Generate, show and write.

    Raises:
        UserError: a checkpoint, a prompt or a setting that does not fit.
    """
    keys = request(GenerateRequest, compose_arguments("generate", arguments).plain())
    check_outputs(keys.output, keys.trace)
    sampler = build(keys.sampler, trust=("dlm", *keys.trust), path="sampler")
    device, console = pick_device(keys.device), screen()
    loaded = load(keys.checkpoint, trust=keys.trust)
    loaded.denoiser.to(device)
    job = _Job(keys, loaded, sampler, device, console)
    records = job.run()
    for text, record in zip(job.texts, records, strict=True):
        say(console, f"--- {text.name}, {record['calls']} network calls")
        if not keys.stream:
            say(console, record["text"])
    if keys.output is not None:
        with writing(keys.output) as place:
            write_records(place, records)
        say(console, f"wrote {keys.output}")
    if keys.trace is not None:
        write_text(keys.trace, job.trace_page())
        say(console, f"wrote {keys.trace}")


@final
class _Job:
    """A request with its model: which texts to write, and how.

    Raises:
        UserError: a prompt or a setting that does not fit the model.
    """

    def __init__(
        self,
        keys: GenerateRequest,
        loaded: Loaded,
        sampler: Sampler,
        device: torch.device,
        console: Console,
    ) -> None:
        self.keys, self.device, self.console = keys, device, console
        self.tokenizer = loaded.tokenizer
        blocks: Blocks = construct(Blocks, keys.blocks, path="blocks")
        self.blocks = blocks.around(sampler, loaded.denoiser.backbone.length)
        self.sampler = sampler if self.blocks is None else self.blocks
        self.spec = blocks_spec(self.blocks, keys.sampler)
        asked = keys.asked()
        templates = self._templates(asked, loaded.denoiser.backbone.length)
        self.predictor, conditions = guided(
            loaded,
            construct(Guidance, keys.guidance, path="guidance"),
            [each.condition for each in asked],
            prompted=any(bool(template.frozen.any()) for template in templates),
            device=device,
        )
        self.conditional = conditions is not None
        parts = zip(asked, templates, conditions or [-1] * len(asked), strict=True)
        self.texts = [
            Text(each, template, each.first_row + n, condition)
            for each, template, condition in parts
            for n in range(keys.num)
        ]
        self.checkpoint = weights_hash(loaded.denoiser)
        self.trace: Trace | None = None

    def run(self) -> list[Record]:
        """Write all texts."""
        tokens = sum(len(text.template.tokens) for text in self.texts)
        bar = nullcontext(_nothing) if self.keys.stream else progress_bar("generate", tokens)
        records: list[Record] = []
        with bar as advance:
            for texts in self._batches():
                records += self._write(texts, advance)
        return records

    def trace_page(self) -> str:
        """The steps of the first texts as a web page."""
        about = {"checkpoint": self.checkpoint, "seed": self.keys.seed, "sampler": self.spec}
        return trace_page([] if self.trace is None else [self.trace], self.tokenizer, about)

    def _templates(self, asked: Sequence[Asked], limit: int) -> list[Template]:
        keys, tokenizer = self.keys, self.tokenizer
        allow = None if keys.allow is None else Allowed.matching(keys.allow, tokenizer)
        in_blocks = self.blocks is not None
        templates = []
        for each in asked:
            try:
                templates.append(make_template(tokenizer, each, allow, limit, in_blocks))
            except UserError as error:
                raise at_line(keys.prompts, each, error) from error
        return templates

    def _batches(self) -> Iterator[list[Text]]:
        """Texts that are written together; a classifier takes padding for text and gets none."""
        groups = [self.texts]
        if self.keys.guidance["classifier"] is not None:
            alike = groupby(self.texts, key=lambda text: len(text.template.tokens))
            groups = [list(group) for _, group in alike]
        size = self.keys.batch_size
        for group in groups:
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _write(self, texts: list[Text], advance: Callable[[float], None]) -> list[Record]:
        packed = pack(
            [text.template for text in texts], pad=self.tokenizer.eos_id, device=self.device
        )
        rows = torch.tensor([text.row for text in texts], device=self.device)
        key = Key(self.keys.seed, rows)
        total = float(packed.lengths.sum())
        done = total / self.sampler.calls(packed.prompt.tokens.shape[1])

        trace = None
        if self.keys.trace is not None and self.trace is None:
            trace = self.trace = self._new_trace(texts, packed)

        def on_step(step: Step) -> None:
            advance(done)
            if trace is not None:
                trace(step)

        samples = self._sample(texts, packed, key, on_step)
        return record_samples(
            samples,
            key,
            self.tokenizer,
            origins=[Origin(t.asked.given, t.asked.condition, t.asked.line) for t in texts],
            sampler=self.spec,
            checkpoint=self.checkpoint,
            lengths=packed.lengths,
            guidance=self.keys.guidance,
            allow=self.keys.allow,
        )

    def _new_trace(self, texts: list[Text], packed: Packed) -> Trace:
        """Of the first rows of a batch."""
        return Trace(
            self.predictor.process,
            frozen=packed.prompt.frozen,
            lengths=packed.lengths,
            names=[text.name for text in texts],
            rows=range(min(TRACED, len(texts))),
        )

    def _sample(self, texts: list[Text], packed: Packed, key: Key, on_step: OnStep) -> Samples:
        context = packed.context
        if self.conditional:
            conditions = torch.tensor([text.condition for text in texts], device=self.device)
            context = context._replace(condition=conditions)
        draw = self.sampler
        if self.blocks is not None and self.keys.stream:
            lengths = packed.lengths.tolist()
            names = [text.name for text in texts]
            printer = BlockPrinter(self.console, self.tokenizer, names, lengths)
            draw = partial(self.blocks, on_block=printer)
        batch, length = packed.prompt.tokens.shape
        return draw(
            self.predictor,
            (batch, length),
            key=key,
            prompt=packed.prompt,
            context=context,
            on_step=on_step,
        )


def _nothing(done: float) -> None:
    """No progress to show."""
