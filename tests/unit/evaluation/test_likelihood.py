"""The bound on laws whose answer is known exactly, and what may not change it."""

import itertools
import math

import pytest
import torch
from torch import nn

from dlm.data import Batch
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.evaluation import evaluate, likelihood, sequence_nelbo, sequence_nelbo_steps
from dlm.parameterizations import LeaveOneOut
from dlm.processes import Absorbing, Hybrid, Uniform
from dlm.random import Key
from dlm.schedules import Cosine, Linear

V = 5  # data tokens; MASK is one more
CERTAIN = 60.0  # a logit that leaves nothing for the others in float64


class Law(nn.Module):
    """A network that knows the data: hidden states are its logits."""

    def __init__(self, num_states, time_conditioning):
        super().__init__()
        self.head = nn.Linear(num_states, num_states, bias=False).double()
        nn.init.eye_(self.head.weight)
        self.length, self.time_conditioning = 64, time_conditioning


class Independent(Law):
    """Every token has the law given by `weights`."""

    def __init__(self, num_states, time_conditioning, weights):
        super().__init__(num_states, time_conditioning)
        self.logits = torch.zeros(num_states, dtype=torch.float64)
        self.logits[: len(weights)] = torch.tensor(weights, dtype=torch.float64).log()

    def forward(self, tokens, *, level=None, documents=None):
        return self.logits.to(self.head.weight.dtype).expand(*tokens.shape, -1)


class Twins(Law):
    """Two even tokens that are always equal: what one shows is what is known of the other."""

    def forward(self, tokens, *, level=None, documents=None):
        other = nn.functional.one_hot(tokens.flip(-1), self.head.out_features).double()
        if level is None:  # absorbing: a token is right or MASK
            return CERTAIN * other * (tokens.flip(-1) < V)[..., None]
        alpha = level.double().sigmoid()[:, None, None]
        return torch.log(alpha * other + (1 - alpha) / V)


def denoiser(kind, backbone, *args, schedule=None):
    process = {
        "absorbing": lambda s: Absorbing(V + 1, V, s),
        "uniform": lambda s: Uniform(V, s),
    }[kind](schedule or Linear())
    network = backbone(process.num_states, process.time_conditioned, *args)
    return Denoiser(network, process, LeaveOneOut()).eval()


def batch(tokens, first=0, valid=None):
    rows = torch.arange(first, first + len(tokens))
    valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
    return Batch(tokens, valid, None, rows)


def draw(rows, length, seed=0, weights=(1.0,) * V):
    generator = torch.Generator().manual_seed(seed)
    law = torch.tensor(weights)
    return torch.multinomial(law, rows * length, True, generator=generator).view(rows, length)


def twins(rows):
    return draw(rows, 1).expand(-1, 2).contiguous()


def close(estimate, stderr, truth):
    """Within four standard errors, which must themselves say something."""
    assert stderr < 0.05 * truth
    return abs(estimate - truth) < 4 * stderr


PROCESSES = pytest.mark.parametrize("kind", ["absorbing", "uniform"])
EVEN = (1.0,) * V
SKEWED = (8.0, 4.0, 2.0, 1.0, 1.0)


@PROCESSES
def test_a_network_that_knows_nothing_pays_log_of_the_number_of_tokens(kind):
    result = evaluate(
        denoiser(kind, Independent, EVEN),
        [batch(draw(400, 16))],
        num_bytes=400 * 16,
        num_sequences=400,
    )
    assert close(result.nelbo, result.nelbo_stderr, math.log(V))
    assert result.bits_per_byte == pytest.approx(result.nelbo / math.log(2))
    assert result.prior_kl == result.reconstruction == 0
    assert result.draws == 8


@PROCESSES
@pytest.mark.parametrize("schedule", [Linear(), Linear(alpha_min=0.3), Cosine()])
def test_a_network_that_knows_the_law_pays_its_entropy_on_any_schedule(kind, schedule):
    tokens = draw(300, 16, weights=SKEWED)
    weights = torch.tensor(SKEWED) / sum(SKEWED)
    truth = -weights[tokens].log().mean().item()
    model = denoiser(kind, Independent, SKEWED, schedule=schedule)
    result = evaluate(model, [batch(tokens)], num_bytes=None, num_sequences=300)
    assert close(result.nelbo, result.nelbo_stderr, truth)


@PROCESSES
def test_a_network_that_knows_dependent_tokens_pays_their_joint_entropy(kind):
    nats = sequence_nelbo(denoiser(kind, Twins), batch(twins(4000)), draws=8, seed=0)
    stderr = nats.std().item() / math.sqrt(len(nats))
    assert close(nats.mean().item(), stderr, math.log(V))


@PROCESSES
def test_numbers_do_not_depend_on_the_batch(kind):
    torch.manual_seed(0)
    model = denoiser(kind, Independent, SKEWED).float()
    nn.init.normal_(model.backbone.head.weight)
    tokens = draw(21, 16)
    whole = sequence_nelbo(model, batch(tokens), draws=3, seed=5)
    parts = [
        sequence_nelbo(model, batch(tokens[i : i + 4], first=i), draws=3, seed=5)
        for i in range(0, 21, 4)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)
    whole = sequence_nelbo_steps(model, batch(tokens), steps=6, draws=3, seed=5)
    one = sequence_nelbo_steps(model, batch(tokens[20:], first=20), steps=6, draws=3, seed=5)
    torch.testing.assert_close(one, whole[20:], rtol=1e-6, atol=0)


@PROCESSES
def test_a_seed_repeats_bit_for_bit_and_another_agrees_within_the_interval(kind):
    model, data = denoiser(kind, Independent, SKEWED), batch(draw(200, 16))
    results = [
        evaluate(model, [data], num_bytes=None, num_sequences=200, seed=seed, steps=4).json()
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1]
    assert results[0]["nelbo"] != results[2]["nelbo"]
    assert results[0]["nelbo_steps"] != results[2]["nelbo_steps"]
    distance = abs(results[0]["nelbo"] - results[2]["nelbo"])
    assert distance < 4 * math.hypot(results[0]["nelbo_stderr"], results[2]["nelbo_stderr"])


@PROCESSES
def test_stratified_draws_have_less_variance_than_independent_ones(kind):
    model, data = denoiser(kind, Twins), batch(twins(600))
    stratified = sequence_nelbo(model, data, draws=8, seed=0)
    separate = [sequence_nelbo(model, data, draws=1, seed=seed) for seed in range(8)]
    assert stratified.var() < 0.8 * torch.stack(separate).mean(0).var()


def test_times_are_even_over_sequences_whatever_their_number():
    model = denoiser("uniform", Independent, EVEN)
    seen = []
    model.backbone.forward = lambda tokens, *, level, documents: (
        seen.append(torch.sigmoid(-level)) or torch.zeros(*tokens.shape, V, dtype=torch.float64)
    )
    sequence_nelbo(model, batch(draw(100, 2)), draws=1, seed=3)
    gaps = torch.cat(seen).sort().values.diff()
    assert gaps.max() < 0.03  # 100 independent times leave a gap of about 0.05
    assert gaps.min() > 0.003


@PROCESSES
def test_padding_is_neither_noised_nor_counted(kind):
    model, tokens = denoiser(kind, Independent, SKEWED), draw(50, 4)
    valid = torch.tensor([True, True, False, False]).expand(50, 4)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    short = batch(tokens[:, :2])
    for bound in (sequence_nelbo, lambda *args, **kw: sequence_nelbo_steps(*args, steps=2, **kw)):
        padded = bound(model, batch(tokens, valid=valid), draws=4, seed=0)
        torch.testing.assert_close(padded, bound(model, short, draws=4, seed=0))
    padded = [noisy for noisy in seen if noisy.shape[1] == 4]
    assert all((noisy[:, 2:] == tokens[:, 2:]).all() for noisy in padded)
    assert any((noisy[:, :2] != tokens[:, :2]).any() for noisy in padded)
    result = evaluate(model, [batch(tokens, valid=valid)], num_bytes=None, num_sequences=50)
    assert result.tokens == 100


def enumerated_step_bound(kind, steps):
    """Exact K-step bound of `Twins`, nats per sequence: bridges and posteriors by Bayes' rule."""
    states = V + (kind == "absorbing")
    noise = torch.zeros(states, dtype=torch.float64)
    noise[V if kind == "absorbing" else slice(None)] = 1 / (1 if kind == "absorbing" else V)
    eye = torch.eye(states, dtype=torch.float64)
    x0, total = 0, 0.0  # all tokens are alike
    for k in range(steps):
        a_t, a_s = k / steps, (k + 1) / steps
        q_t, q_s = (a * eye[x0] + (1 - a) * noise for a in (a_t, a_s))
        step = a_t / a_s * eye + (1 - a_t / a_s) * noise  # row: z_s, column: z_t
        for z, other in itertools.product(range(states), repeat=2):
            weight = q_t[z] * q_t[other]
            if weight == 0:
                continue
            seen = a_t * eye[other, :V] + (1 - a_t) * noise[other]
            loo = torch.cat([seen / seen.sum(), torch.zeros(states - V).double()])
            bridge, model = (step[:, z] * p for p in (q_s, a_s * loo + (1 - a_s) * noise))
            bridge, model = bridge / bridge.sum(), model / model.sum()
            logs = torch.where(bridge > 0, bridge.log() - model.log(), 0)
            total += 2 * (weight * (bridge * logs).sum()).item()
    return total


@PROCESSES
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_step_bound_equals_enumeration(kind, steps):
    nats = sequence_nelbo_steps(
        denoiser(kind, Twins), batch(twins(3000)), steps=steps, draws=5, seed=0
    )
    stderr = nats.std().item() / math.sqrt(len(nats))
    truth = enumerated_step_bound(kind, steps)
    assert abs(nats.mean().item() - truth) < 4 * stderr + 1e-6
    if kind == "absorbing":  # the closed form: two tokens are revealed together in 1 of K cases
        assert truth == pytest.approx((1 + 1 / steps) * math.log(V))


@PROCESSES
def test_step_bound_falls_to_the_continuous_one(kind):
    bounds = [enumerated_step_bound(kind, steps) for steps in (1, 2, 8, 256)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(math.log(V), rel=0.02)
    data = batch(twins(3000))
    many = sequence_nelbo_steps(denoiser(kind, Twins), data, steps=256, draws=8, seed=0)
    stderr = many.std().item() / math.sqrt(len(many))
    assert abs(many.mean().item() - bounds[-1]) < 4 * stderr


@PROCESSES
def test_step_bound_of_many_steps_keeps_its_digits_in_float32(kind):
    data, options = batch(draw(20, 16)), {"steps": 10_000, "draws": 4, "seed": 0}
    exact = sequence_nelbo_steps(denoiser(kind, Independent, SKEWED), data, **options)
    single = sequence_nelbo_steps(denoiser(kind, Independent, SKEWED).float(), data, **options)
    torch.testing.assert_close(single, exact, rtol=1e-5, atol=1e-4)


@PROCESSES
def test_step_bound_does_not_depend_on_its_chunks(kind, monkeypatch):
    model, data = denoiser(kind, Independent, SKEWED), batch(draw(5, 16))
    whole = sequence_nelbo_steps(model, data, steps=3, draws=2, seed=0)
    monkeypatch.setattr(likelihood, "STEP_ENTRIES", 20)
    torch.testing.assert_close(sequence_nelbo_steps(model, data, steps=3, draws=2, seed=0), whole)


@PROCESSES
@pytest.mark.parametrize(("level", "kept"), [(0.0, 1e-5), (1 - 2.0**-53, 1 - 1e-5)])
def test_times_stop_where_float32_losses_do(kind, level, kept, monkeypatch):
    model, data = denoiser(kind, Independent, SKEWED).float(), batch(draw(5, 16))
    draws = [(torch.full((5,), level).double(), Key(0, data.rows))]
    monkeypatch.setattr(likelihood, "stratified", lambda *_: draws)
    seen, elbo = [], likelihood.BOUNDS["elbo"]

    def record(denoiser, x0, state, t, weight, context):
        seen.append(t)
        return elbo(denoiser, x0, state, t, weight, context)

    monkeypatch.setitem(likelihood.BOUNDS, "elbo", record)
    assert sequence_nelbo(model, data, draws=1, seed=0).isfinite().all()
    assert seen[0].tolist() == [kept] * 5
    steps = sequence_nelbo_steps(model, data, steps=3, draws=1, seed=0)
    assert steps.isfinite().all()
    assert steps.sum() > 0


def test_steps_appear_only_when_asked_for():
    model, data = denoiser("absorbing", Independent, EVEN), [batch(draw(4, 8))]
    without = evaluate(model, data, num_bytes=None, num_sequences=4).json()
    assert not any("steps" in key for key in without)
    result = evaluate(model, data, num_bytes=None, num_sequences=4, steps=3)
    record = result.json()
    assert record["steps"] == 3
    assert record["ppl_steps"] == pytest.approx(math.exp(result.nelbo_steps))
    assert (record["process"], record["precision"]) == ("Absorbing", "32")


def test_the_model_is_evaluated_without_dropout_and_left_as_it_was():
    model = denoiser("absorbing", Independent, EVEN).train()
    modes = []
    model.backbone.register_forward_hook(lambda module, *_: modes.append(module.training))
    evaluate(model, [batch(draw(4, 8))], num_bytes=None, num_sequences=4)
    assert modes
    assert not any(modes)
    assert model.training
    assert model.backbone.training


def test_bf16_is_near_and_not_equal():
    torch.manual_seed(0)
    model = denoiser("absorbing", Independent, SKEWED).float()
    nn.init.normal_(model.backbone.head.weight)
    data = [batch(draw(20, 16))]
    full, half = (
        evaluate(model, data, num_bytes=None, num_sequences=20, precision=p).nelbo
        for p in ("32", "bf16-mixed")
    )
    assert full != half
    assert full == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draws": 0}, "draws=0"),
        ({"steps": 0}, "steps=0"),
        ({"precision": "8"}, "precision must be one of"),
        ({"precision": "16-mixed"}, "needs a GPU"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(options, sentence):
    model = denoiser("absorbing", Independent, EVEN)
    with pytest.raises(UserError, match=sentence):
        evaluate(model, [batch(draw(2, 4))], num_bytes=None, num_sequences=2, **options)


def test_the_coupled_bound_is_the_elbo_of_masks_and_looser_for_uniform_noise():
    tokens, skewed = draw(300, 16, weights=SKEWED), {"num_bytes": None, "num_sequences": 300}
    bounds = {}
    for kind in ("absorbing", "uniform"):
        model = denoiser(kind, Independent, SKEWED)
        for bound in ("elbo", "maximal_coupling"):
            bounds[kind, bound] = evaluate(model, [batch(tokens)], bound=bound, steps=4, **skewed)
    masks, coupled = (bounds["absorbing", bound] for bound in ("elbo", "maximal_coupling"))
    assert masks.nelbo == pytest.approx(coupled.nelbo)
    assert masks.nelbo_steps == pytest.approx(coupled.nelbo_steps)
    assert coupled.comparable
    tight, loose = (bounds["uniform", bound] for bound in ("elbo", "maximal_coupling"))
    assert loose.nelbo > tight.nelbo + 0.1
    assert loose.nelbo_steps > tight.nelbo_steps + 0.05
    assert tight.json()["comparable"] is True
    assert loose.json()["comparable"] is False
    assert loose.json()["bound"] == "maximal_coupling"


def test_the_coupled_bound_is_refused_where_it_is_none():
    process = Hybrid(V + 1, V, 0.2, Linear())
    model = Denoiser(Independent(V + 1, True, SKEWED), process, LeaveOneOut())
    with pytest.raises(UserError, match="constant law, Hybrid"):
        evaluate(model, [], num_bytes=None, num_sequences=1, bound="maximal_coupling")
