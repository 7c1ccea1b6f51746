"""Every yaml of configs/law, at its own size; what its first comment says of its correlations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dlm.lab.laws import Law
from dlm.random import Key
from dlm.spec import build
from tests.unit.lab.law_cases import concrete_laws

FOLDER = Path(__file__).parents[3] / "configs" / "law"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SURE = 4.5  # standard errors


def law_of(name: str) -> Law:
    spec = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    made = build(spec, trust=("dlm",))
    assert isinstance(made, Law)
    return made


def test_every_law_has_a_yaml():
    shown = {type(law_of(name)) for name in NAMES}
    assert shown == concrete_laws()


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_gives_draws_and_posteriors(name: str):
    law = law_of(name)
    tokens = law.sample(8, key=Key(0, torch.arange(8)))
    assert tokens.shape == (8, law.length)
    assert ((tokens >= 0) & (tokens < law.symbols)).all()
    log_p = law.log_prob(tokens)
    assert (log_p <= 0).all()
    assert log_p.isfinite().all()
    shown = torch.nn.functional.one_hot(tokens, law.symbols).double()
    torch.testing.assert_close(law.log_marginal(shown.log()), log_p)
    for evidence in (shown.log(), (0.7 * shown + 0.3 / law.symbols).log()):
        posterior = law.log_posterior(evidence)
        assert not posterior.isnan().any()
        torch.testing.assert_close(posterior.exp().sum(-1), torch.ones(8, law.length).double())
        # log p(x) = log p(x without i) + log p(x_i | the others), for any evidence
        whole = (posterior + evidence).logsumexp(-1)
        rest = evidence.clone()
        rest[:, 0] = 0.0
        torch.testing.assert_close(law.log_marginal(rest) + whole[:, 0], law.log_marginal(evidence))


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_gives_its_information(name: str):
    law = law_of(name)
    entropy, curve = law.entropy(), law.curve()
    total, dual = law.total_correlation(), law.dual_total_correlation()
    single = torch.special.entr(law.marginals()).sum().item()
    assert curve.length == law.length
    assert np.isfinite([*entropy, *curve.values, *total, *dual]).all()
    assert 0 <= entropy.value <= single + 1e-9
    assert total.value == pytest.approx(single - entropy.value, abs=1e-9)
    values = np.array(curve.values)
    if curve.stderr is None:
        assert (entropy.stderr, total.stderr, dual.stderr) == (0, 0, 0)
        assert (np.diff(values) > -1e-12).all()
        assert -1e-9 <= dual.value <= entropy.value + 1e-9
        return
    errors = np.array(curve.stderr)
    assert np.isfinite(errors).all()
    assert (errors[1:] > 0).all()
    assert entropy.stderr < 0.02 * single
    assert total.stderr == entropy.stderr
    assert dual.value == pytest.approx(law.length * values[-1] - total.value, abs=1e-9)
    assert dual.stderr == pytest.approx(np.hypot(law.length * errors[-1], total.stderr))
    # The curve is estimated from other draws than the entropy; its values share theirs.
    assert abs(values.sum() - total.value) < SURE * np.hypot(errors.sum(), total.stderr)
    assert (np.diff(values) > -SURE * np.hypot(errors[1:], errors[:-1])).all()


LOG4 = math.log(4)
SAID = {  # total correlation, dual total correlation
    "checksum": (LOG4, 15 * LOG4),
    "code": (3 * math.log(5), 2 * math.log(5)),
    "pairs": (8 * LOG4, 8 * LOG4),
    "permutation": (8 * math.log(8) - math.lgamma(9), math.lgamma(9)),
    "product": (0.0, 0.0),
    "repeated": (15 * LOG4, LOG4),
    "tunable": ((2 * 3 + 2) * LOG4, (2 + 2 * 3) * LOG4),
}


@pytest.mark.parametrize("name", SAID)
def test_a_yaml_keeps_what_it_says(name: str):
    law = law_of(name)
    found = law.total_correlation().value, law.dual_total_correlation().value
    assert found == pytest.approx(SAID[name], abs=1e-9)


def test_the_mixture_keeps_what_it_says():
    dual = law_of("mixture").dual_total_correlation()
    assert dual.value < math.log(3) + SURE * dual.stderr
