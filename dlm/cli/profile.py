"""`dlm profile checkpoint=P`: what finite steps cost a model, and the plan or grid of least cost.

Where positions are hidden, the dependence curve of the model is measured on held-out text and the
loss of every plan is predicted from it. Where they are not, or the noise is more than masks, the
costs of steps between levels are measured and the loss of grids is predicted. The file holds all of
it and is what `plan=profile` and `grid=profile` of `dlm generate` read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from dlm.checkpoint import weights_hash
from dlm.cli import profile_figures as figures
from dlm.cli import profile_report as report
from dlm.cli.common import (
    as_text,
    check_outputs,
    compose_arguments,
    progress_bar,
    request,
    say,
    screen,
    writing,
)
from dlm.cli.saved import Saved, chosen
from dlm.data import Batch
from dlm.errors import UserError
from dlm.evaluation.dependence import full_rows, known_counts, measure_dependence
from dlm.evaluation.gradients import measure_gradients
from dlm.evaluation.plan_costs import PlanCosts
from dlm.evaluation.profile import measure_profile
from dlm.evaluation.sensitivity import (
    NOISE_LEVELS,
    measure_sampled_sensitivity,
    measure_sensitivity,
    probe_refusal,
)
from dlm.evaluation.step_costs import candidate_levels, measure_step_costs
from dlm.evaluation.terms import measure_terms
from dlm.files import replace_text
from dlm.processes import Process

RESAMPLED = 400  # sets of sequences drawn with replacement, for the intervals
PROBED = 2  # positions of a sequence and level, in the sensitivity probe
FEWER = 4  # the slow extras look at every fourth sequence, at 8 at least
BINS, LEVELS = 8, 5  # of the noise level, in the diagnostics; levels a sequence
GRID = 256  # gaps between the levels of a grid


@final
@dataclass(frozen=True)
class ProfileRequest:
    """The keys of `configs/profile.yaml`; None is what the checkpoint says."""

    checkpoint: str
    output: str
    split: str
    budget: int
    target: float
    sequences: int
    draws: int
    length: int | None
    probe: bool
    diagnostics: bool
    seed: int
    precision: str | None
    batch_size: int
    device: str | None
    trust: Sequence[str]
    data: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("budget", "draws", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sequences < 4:
            raise UserError(f"sequences must be at least 4, got {self.sequences}")
        if self.length is not None and self.length < 2:
            raise UserError(f"length must be at least 2, got {self.length}")
        if not self.target > 0:
            raise UserError(f"target must be above 0 nats, got {self.target}")
        if Path(self.output).suffix != ".json":
            raise UserError(f"output must be a file NAME.json, got {self.output!r}")


def run(arguments: Sequence[str]) -> None:
    """Measure, predict, show and write.

    Raises:
        UserError: a checkpoint, data or a setting that does not fit.
    """
    config = compose_arguments("profile", arguments).plain()
    keys = request(ProfileRequest, {**config, "precision": as_text(config["precision"])})
    check_outputs(keys.output)
    saved = Saved.of(keys)
    process = saved.loaded.denoiser.process
    if keys.probe and (refusal := probe_refusal(process)) is not None:
        raise UserError(refusal)
    run = _Profile(keys, saved)
    content: dict[str, Any] = {}
    curve = run.plans(content) if process.reveals else None
    if not _masks(process):
        run.grids(content)
    if keys.probe:
        run.probe(content)
    if keys.diagnostics:
        run.diagnose(content)
    run.write(curve, content)


@final
class _Profile:
    """One request: the text and the model, what is measured and what is shown of it."""

    def __init__(self, keys: ProfileRequest, saved: Saved) -> None:
        self.keys, self.denoiser, self.data = keys, saved.loaded.denoiser, saved.data
        context = saved.loaded.meta["length"]
        self.length = context if keys.length is None else keys.length
        if self.length > context:
            raise UserError(
                f"length must be at most {context}, the context of the model, got {self.length}"
            )
        self.blocks = saved.blocks(saved.classes)
        self.budget = min(keys.budget, self.length)
        self.shared = {"seed": keys.seed, "precision": saved.precision}
        self.device = saved.device
        self.console = screen()
        self.images: list[tuple[str, Any]] = []
        self.advice: list[str] = []  # keys of `dlm generate`

    def plans(self, content: dict[str, Any]):
        """The dependence curve, and what plans lose on it."""
        calls = len(known_counts(self.length)) + 12
        dependence = measure_dependence(
            self.denoiser,
            self._batches("dependence", self.keys.sequences, calls * self.keys.draws),
            draws=self.keys.draws,
            device=self.device,
            **self.shared,
        )
        costs = PlanCosts.of(dependence, RESAMPLED, self.keys.seed)
        budgets = sorted({*costs.budgets(), self.budget})
        calls = {name: costs.calls(name, self.keys.target) for name in costs.names}
        content.update(report.plan_record(dependence, costs, budgets, calls))
        if _masks(self.denoiser.process):
            levels = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)
            loss = dependence.loss_by_level(levels)
            content.update(report.mask_grid_record(levels, loss, costs, budgets, self._schedule))
        self.console.print(report.summary(dependence, costs, self.keys.split))
        self.console.print(report.plan_table(costs, budgets, calls, self.keys.target))
        say(self.console, report.sentence(costs, self.budget, calls, self.keys.target))
        plan = report.recommended(costs, self.budget)
        say(self.console, report.reason(costs, self.budget, plan))
        choice = f"sampler=reveal {report.plan_keys(plan, self.keys.output)}"
        self.advice = [f"{choice} sampler.steps={self.budget}"]
        if calls[plan].value != self.budget:
            self.advice.append(f"{choice} sampler.steps={calls[plan].value}")
        self.images.append(("", lambda path: figures.draw_plans(path, dependence, costs, budgets)))
        return costs.curve

    def grids(self, content: dict[str, Any]) -> None:
        """The costs of steps between levels, and what grids lose."""
        costs = measure_step_costs(
            self.denoiser,
            self._batches("steps", self.keys.sequences, len(candidate_levels())),
            device=self.device,
            **self.shared,
        )
        budgets = sorted({*(2**k for k in range((self.length - 1).bit_length() + 1)), self.budget})
        seed = self.keys.seed
        record = report.grid_record(costs, budgets, self._schedule, RESAMPLED, seed)
        content.update(record)
        self.console.print(report.grid_table(record["grids"], budgets))
        say(self.console, report.grid_sentence(record["grids"], self.budget))
        if not self.advice:
            path, steps = shlex.quote(self.keys.output), f"sampler.steps={self.budget}"
            self.advice = [f"sampler=ancestral grid=profile grid.path={path} {steps}"]
        suffix = ".grids" if self.images else ""
        self.images.append(
            (suffix, lambda path: figures.draw_grids(path, record["grids"], record["grid"]))
        )

    def probe(self, content: dict[str, Any]) -> None:
        """How much leave-one-out posteriors look at their own token."""
        batches = self._batches("probe", self._fewer, (PROBED + 1) * len(NOISE_LEVELS))
        shared = {"positions": PROBED, "device": self.device, **self.shared}
        read = measure_sensitivity(self.denoiser, batches, **shared)
        say(self.console, f"the same on the way of {self._fewer} samples, {self.budget} steps")
        drawn = measure_sampled_sensitivity(
            self.denoiser, self._fewer, self.length, steps=self.budget, **shared
        )
        found = {"held-out text": read, "samples": drawn}
        content["sensitivity"] = report.sensitivity_record(found)
        self.console.print(report.sensitivity_table(found))
        self.images.append((".probe", lambda path: figures.draw_sensitivity(path, found)))

    def diagnose(self, content: dict[str, Any]) -> None:
        """Loss by noise level and by term, and the variance of the gradient."""
        batches = self._batches("terms", self.keys.sequences, LEVELS)
        terms = measure_terms(self.denoiser, batches, draws=LEVELS, **self.shared)
        batches = self._batches("loss", self.keys.sequences, 2 * LEVELS)
        loss = measure_profile(self.denoiser, batches, bins=BINS, draws=2 * LEVELS, **self.shared)
        batches = self._batches("gradients", self._fewer, 3 * LEVELS)
        noise = measure_gradients(self.denoiser, batches, bins=BINS, draws=LEVELS, **self.shared)
        content["diagnostics"] = report.diagnostics_record(loss, noise, terms)
        for shown in (report.terms_table(terms), *report.diagnostics_tables(loss, noise)):
            self.console.print(shown)
        self.images.append(
            (".diagnostics", lambda path: figures.draw_diagnostics(path, loss, noise))
        )

    def write(self, curve: Any, content: dict[str, Any]) -> None:
        """The file, its pictures, and what to do next."""
        keys, output = self.keys, self.keys.output
        content = {
            **content,
            "process": type(self.denoiser.process).__name__,
            "checkpoint": weights_hash(self.denoiser),
            "data": self.data,
            **{name: getattr(keys, name) for name in ("split", "sequences", "draws", "target")},
            **self.shared,
        }
        with writing(output) as place:
            if curve is not None:
                curve.save(place, **content)
            else:
                text = json.dumps({"kind": "step_costs", **content}, indent=2, allow_nan=False)
                replace_text(place, text + "\n")
            say(self.console, f"wrote {output}")
            for suffix, draw in self.images:
                image = place.with_suffix(f"{suffix}.png")
                draw(image)
                say(self.console, f"wrote {image}")
        say(self.console, "try next:")
        for keys_of_sampler in self.advice:
            say(self.console, f"  dlm generate checkpoint={keys.checkpoint} {keys_of_sampler}")

    @property
    def _schedule(self):
        return self.denoiser.process.schedule

    @property
    def _fewer(self) -> int:
        return max(8, self.keys.sequences // FEWER)

    def _batches(self, label: str, count: int, calls: int) -> Iterator[Batch]:
        """Sequences evenly over the split, cut to the length; those with padding are left out."""
        tokens = self.length * calls  # that the network sees, a sequence
        with progress_bar(label, min(count, len(self.blocks)) * tokens) as advance:
            for batch in chosen(self.blocks, count, self.keys.batch_size):
                yield full_rows(_cut(batch, self.length))
                advance(len(batch.rows) * tokens)


def _cut(batch: Batch, length: int) -> Batch:
    documents = None if batch.documents is None else batch.documents[:, :length]
    tokens, valid = batch.tokens[:, :length], batch.valid[:, :length]
    return batch._replace(tokens=tokens, valid=valid, documents=documents)


def _masks(process: Process) -> bool:
    """Whether noise is a mask and nothing else, so that the curve says what grids cost too."""
    return process.reveals and process.shows_noise and not process.noise_conditioned
