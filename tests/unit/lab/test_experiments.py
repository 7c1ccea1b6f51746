"""Every experiment at tiny settings, and what makes a verdict."""

import json
import math
from pathlib import Path
from typing import final

import pytest
import torch

from dlm import UserError
from dlm.cli.compose import compose
from dlm.lab import Oracle, exact
from dlm.lab.experiments import (
    Adaptive,
    Bound,
    Chains,
    Claim,
    Corrector,
    Estimation,
    Experiment,
    Information,
    Kappa,
    OptimalGrid,
    Pairs,
    Panel,
    Plans,
    PlugIn,
    Result,
    Series,
    Steps,
    Vocabulary,
    curves,
)
from dlm.lab.experiments.kappa import shrinking_levels
from dlm.lab.experiments.pairs import sequential_law
from dlm.lab.experiments.tables import correlated_table, process_of
from dlm.lab.laws import (
    Checksum,
    Dirichlet,
    HiddenMarkov,
    Law,
    Lazy,
    MarkovChain,
    MdsCode,
    Table,
)
from dlm.samplers import InformationCurve
from dlm.spec import build

CONFIGS = Path(__file__).parents[3] / "configs" / "lab"
TINY = [
    Steps(steps=(8, 16, 32), length=2),
    Pairs(lengths=(16, 64), steps=(64, 128, 256)),
    Information(length=256, steps=(4, 8, 16)),
    Adaptive(lengths=(64,), steps=(8,)),
    Vocabulary(symbols=(2, 1000, 20_000), repeats=3, steps=8),
    PlugIn(steps=(16, 32, 64)),
    Corrector(steps=3, length=2, sweeps=(0, 4), many=80),
    Kappa(kappas=(0.25, 0.125, 0.0625), lengths=(64, 256), short=(8, 16, 32)),
    Bound(steps=(1, 3), length=2),
    OptimalGrid(length=32, steps=(8, 32), points=257, candidates=17),
    Chains(lengths=(4, 8), steps=(4, 16), samples=256),
    Plans(Checksum(6, 3), steps=(1, 2, 6), samples=64),
    Estimation(Table(3, 2, Dirichlet(0.7)), steps=(8, 16, 32), counts=(30, 300), samples=512),
]


@pytest.mark.parametrize("experiment", TINY, ids=lambda e: type(e).__name__)
def test_predictions_come_out(experiment, tmp_path):
    result = experiment.run()
    assert [claim for claim in result.claims if not claim.holds] == []
    assert result.holds
    names = [claim.name for claim in result.claims]
    assert len(set(names)) == len(names)
    json.dumps(result.plain(), allow_nan=False)
    result.figure(tmp_path / "figure.png", experiment.about)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_every_experiment_has_a_yaml_and_a_test():
    made = {
        path.stem: build(compose("lab", [f"lab={path.stem}"]).plain("lab"), trust=("dlm",))
        for path in CONFIGS.glob("*.yaml")
    }
    assert all(isinstance(experiment, Experiment) for experiment in made.values())
    assert {type(experiment) for experiment in made.values()} == {type(e) for e in TINY}
    assert all(experiment.about for experiment in made.values())


@pytest.mark.parametrize(
    ("measured", "relation", "holds"),
    [
        (1.05, "equal", True),
        (1.2, "equal", False),
        (0.8, "equal", False),
        (0.5, "at most", True),
        (1.2, "at most", False),
        (1.5, "at least", True),
        (0.8, "at least", False),
        (math.nan, "equal", False),
        (-math.inf, "at most", False),
    ],
)
def test_claims(measured, relation, holds):
    assert Claim("x", measured, 1.0, 0.1, "ours", relation).holds is holds


def test_a_result_holds_if_all_claims_do_and_there_are_some():
    right, wrong = Claim("a", 1.0, 1.0, 0.0, "ours"), Claim("b", math.nan, 1.0, 0.0, "ours")
    panel = Panel("p", "x", "y", (Series("s", (1, 2), (3, 4)), Series("r", (1,), (1,), "slope")))
    assert Result((panel,), (right,)).holds
    assert not Result((panel,), (right, wrong)).holds
    assert not Result((panel,), ()).holds
    plain = Result((panel,), (right, wrong)).plain()
    assert plain["claims"][1]["measured"] is None
    assert [row["y"] for row in plain["rows"]] == [3.0, 4.0]


def test_experiments_fail_where_predictions_do():
    """Kernels that hold rates need more steps than these for their order; even phases too."""
    assert not Steps(steps=(1, 2), length=2, slack=0.01).run().holds
    assert not Kappa(kappas=(2.0, 1.0, 0.5), lengths=(4, 8), short=(4, 8)).run().holds
    assert not Vocabulary(symbols=(2, 3), repeats=2, steps=4).run().holds
    assert not Estimation(Table(2, 2, Dirichlet(1.0)), steps=(1, 2), counts=(9,)).run().holds


@final
class Misjudged(Law):
    """A chain that says the curve of another."""

    def __init__(self, length: int = 8) -> None:
        self.chain = MarkovChain(length, 3, Lazy(0.9))
        self.other = MarkovChain(length, 3, Lazy(0.5))
        self.length, self.symbols = length, 3

    @property
    def draws(self) -> int:
        return self.chain.draws

    def from_uniforms(self, u: torch.Tensor) -> torch.Tensor:
        return self.chain.from_uniforms(u)

    def log_prob(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.chain.log_prob(tokens)

    def log_weights(self, log_evidence: torch.Tensor) -> torch.Tensor:
        return self.chain.log_weights(log_evidence)

    def log_marginal(self, log_evidence: torch.Tensor) -> torch.Tensor:
        return self.chain.log_marginal(log_evidence)

    def exact_entropy(self) -> float | None:
        return self.chain.exact_entropy()

    def exact_curve(self) -> InformationCurve | None:
        return self.other.exact_curve()


def test_plans_notice_a_curve_that_is_not_that_of_the_law():
    wrong = {claim.name for claim in Plans(Misjudged()).run().claims if not claim.holds}
    assert "entropy, nats" not in wrong
    assert {"total correlation, nats", "even, 2 calls: nats lost"} <= wrong


def test_plans_hold_on_a_law_whose_curve_is_estimated():
    law = HiddenMarkov(10, 3, 2, Lazy(0.9), Dirichlet(0.5), None)
    assert law.curve().stderr is not None
    result = Plans(law, steps=(1, 3), samples=200).run()
    assert [claim for claim in result.claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Plans(Checksum(4, 2), steps=(0, 2)), "steps from 1 on, got"),
        (lambda: Plans(Checksum(4, 2), steps=()), "steps from 1 on, got"),
        (lambda: Plans(Checksum(4, 2), samples=1), "samples must be at least 2, got 1"),
        (lambda: Estimation(Checksum(4, 2)), "without impossible sequences"),
        (lambda: Estimation(MarkovChain(8, 3, Lazy(0.5))), "at most 300 sequences, got 3\\^8"),
    ],
)
def test_laws_that_an_experiment_cannot_take(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_adaptive_refuses_cases_without_an_answer():
    with pytest.raises(UserError, match="divide the length"):
        Adaptive(lengths=(10,), steps=(3,))


def test_the_curve_of_a_code_is_that_of_the_law():
    for length, dimension in ((5, 2), (7, 5)):
        law = MdsCode(length, length, dimension)
        assert curves.code(length, dimension).values == pytest.approx(law.exact_curve().values)
    assert curves.code(4, 1).values[-1] == pytest.approx(math.log(5))  # 4 is no prime
    family = curves.family(8, 3)
    both = family["checksum and repeated"]
    parts = family["checksum"], family["repeated token"]
    assert both.total_correlation == pytest.approx(sum(c.total_correlation for c in parts))
    assert {curve.length for curve in family.values()} == {8}


@pytest.mark.parametrize("kappa", [0.5, 0.1])
def test_shrinking_steps_keep_their_rule(kappa):
    levels = shrinking_levels(kappa, 5.0, 1e-3)
    assert levels[-1] == 1.0
    u = -torch.from_numpy(levels[:-1]).log()
    assert (-u.diff() <= kappa * u[1:].clamp(max=1.0) + 1e-12).all()


def test_sequential_sampling_with_the_exact_posterior_is_exact():
    table, process = correlated_table(2, 3, 0), process_of("absorbing", 2)
    law, divergence = sequential_law(Oracle(table, process), table)
    assert torch.allclose(law, exact.embed(table, process), atol=1e-14)
    assert divergence == pytest.approx(0.0, abs=1e-14)
