"""Reveal samplers: exact laws, the formula of the information curve, batches, calls, refusals."""

import math
from itertools import combinations

import pytest
import torch

from dlm import UserError
from dlm.lab import Oracle, exact, pushed
from dlm.random import Key
from dlm.samplers import (
    Confidence,
    Cosine,
    EntropyBound,
    Even,
    FirstHitting,
    InformationCurve,
    LeftToRight,
    Margin,
    Minimax,
    Prompt,
    Random,
    RevealSampler,
)
from tests.toys import absorbing, correlated_law, hybrid, lifted, product_table, uniform

LAW = correlated_law()
SHAPE = (6, LAW.ndim)
HIDING = [absorbing(), lifted(), hybrid()]
ORDERS = [Random(), LeftToRight(), Confidence(), Margin(), EntropyBound(0.0)]
every_hiding = pytest.mark.parametrize("process", HIDING, ids=lambda p: type(p).__name__)
every_order = pytest.mark.parametrize("order", ORDERS, ids=repr)


def drift(sampler, process, sizes, law=LAW):
    pushed_law = pushed.reveal_law(sampler, Oracle(law, process), law.ndim, [(1.0, sizes)])
    return exact.total_variation(exact.embed(law, process), pushed_law).item()


@every_hiding
@every_order
def test_one_at_a_time_is_exact_in_any_order(process, order):
    """First hitting among them: with exact posteriors it adds no error at all."""
    sampler = RevealSampler(FirstHitting(), order, steps=None, level="exact")
    assert drift(sampler, process, (1, 1, 1)) < 1e-12


@every_order
def test_masks_are_exact_whatever_the_network_is_told(order):
    sampler = RevealSampler(FirstHitting(), order, steps=None, level="share")
    assert drift(sampler, absorbing(), (1, 1, 1)) < 1e-12


def test_what_asking_at_the_level_of_training_costs_with_three_symbols():
    """Lifted: hidden tokens may be clean by chance, 1/K. Hybrid: revealed ones may be noise."""
    sampler = RevealSampler(FirstHitting(), Random(), steps=None, level="share")
    assert 1e-4 < drift(sampler, lifted(), (1, 1, 1)) < 2e-3
    assert 0.05 < drift(sampler, hybrid(), (1, 1, 1)) < 0.2


@every_hiding
def test_a_product_law_is_exact_in_one_call(process):
    sampler = RevealSampler(Even(), Random(), steps=1, level="exact")
    assert drift(sampler, process, (3,), product_table()) < 1e-12


def curve_of(law):
    """Z from the entropies of all subsets."""
    length = law.ndim
    mean = [0.0]
    for size in range(1, length + 1):
        sets = list(combinations(range(length), size))
        entropies = [
            exact.entropy(
                law.sum([i for i in range(length) if i not in kept]) if size < length else law
            ).item()
            for kept in sets
        ]
        mean.append(sum(entropies) / len(sets))
    return InformationCurve(
        tuple([0.0] + [mean[1] + mean[j - 1] - mean[j] for j in range(2, length + 1)])
    )


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (2, 1), (1, 1, 1)])
def test_expected_kl_is_that_of_the_information_curve(sizes):
    """KL given the order, averaged over orders: brute force over the sets of each step."""
    law, total = LAW, 0.0
    states = exact.all_states(3, 3)
    flat = law.flatten()

    def marginal(kept, x):
        table = law.sum([i for i in range(3) if i not in kept]) if len(kept) < 3 else law
        return table[tuple(x[i] for i in sorted(kept))] if kept else torch.tensor(1.0)

    def paths(known, left):
        if not left:
            yield 1.0, ()
            return
        rest = [i for i in range(3) if i not in known]
        sets = list(combinations(rest, left[0]))
        for chosen in sets:
            for chance, after in paths((*known, *chosen), left[1:]):
                yield chance / len(sets), (chosen, *after)

    for chance, path in paths((), sizes):
        known: tuple[int, ...] = ()
        log_q = torch.zeros(len(states), dtype=torch.float64)
        for chosen in path:
            for i in chosen:
                log_q += torch.stack(
                    [marginal((*known, i), x) / marginal(known, x) for x in states]
                ).log()
            known = (*known, *chosen)
        total += chance * (flat * (flat.log() - log_q)).sum().item()
    assert curve_of(law).expected_kl(sizes) == pytest.approx(total, abs=1e-12)


def test_averaging_over_orders_loses_less_than_the_curve_says():
    """The law of the sampler is a mixture over orders: its KL is below the average of theirs."""
    sampler = RevealSampler(Even(), Random(), steps=2)
    output = pushed.reveal_law(sampler, Oracle(LAW, absorbing()), 3, [(1.0, (1, 2))])
    kl = exact.kl(exact.embed(LAW, absorbing()), output).item()
    assert 0 < kl < curve_of(LAW).expected_kl((1, 2))


@every_hiding
@pytest.mark.parametrize(
    ("plan", "order", "steps"),
    [(Even(), Random(), 2), (FirstHitting(), Random(), None), (Even(), Confidence(), 2),
     (Even(), EntropyBound(0.3), 3), (Minimax(), LeftToRight(), 2), (Even(), Confidence(0.5), 2)],
    ids=repr,
)  # fmt: skip
def test_the_sampler_draws_from_the_law_that_was_pushed(process, plan, order, steps):
    number, oracle = 4_000, Oracle(LAW, process)
    sampler = RevealSampler(plan, order, steps=steps, level="exact")
    chance, sizes = plan.table(3, 3 if steps is None else steps, 3)
    outcomes = list(zip(chance.tolist(), sizes.tolist(), strict=True))
    expected = pushed.reveal_law(sampler, oracle, 3, outcomes) * number
    tokens = sampler(oracle, (number, 3), key=Key(0, torch.arange(number))).tokens
    place = process.num_states ** torch.arange(2, -1, -1)
    counts = torch.bincount((tokens * place).sum(-1), minlength=len(expected)).double()
    possible = expected > 1e-6
    assert counts[~possible].sum() == 0
    chi2 = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


class Recorder:
    """An oracle that writes down where it was run and where the head was."""

    time_conditioning = True

    def __init__(self, process):
        self.process, self.oracle = process, Oracle(LAW, process)
        self.rows, self.heads, self.times = [], [], []

    def passes(self, length):
        return 1

    def hidden(self, state, t, context=None):
        self.rows.append(len(state.tokens))
        self.times.append(t)
        return self.oracle.hidden(state, t)

    def predict(self, hidden, state, t):
        self.heads.append(len(state.tokens))
        return self.oracle.predict(hidden, state, t)


def test_head_and_draw_touch_only_what_is_revealed():
    for order, heads in (
        (Random(), [6, 6, 6]),
        (LeftToRight(), [6, 6, 6]),
        (Margin(), [18, 12, 6]),
    ):
        recorder = Recorder(absorbing())
        samples = RevealSampler(Even(), order, steps=3)(
            recorder, SHAPE, key=Key(0, torch.arange(6))
        )
        assert recorder.heads == heads
        assert (samples.calls == 3).all()


def test_sequences_with_nothing_to_reveal_are_not_run():
    frozen = torch.zeros(SHAPE, dtype=torch.bool)
    frozen[0, :], frozen[1, :2] = True, True
    recorder = Recorder(absorbing())
    prompt = Prompt(torch.ones(SHAPE).long(), frozen)
    samples = RevealSampler(Even(), Random(), steps=3)(
        recorder, SHAPE, key=Key(0, torch.arange(6)), prompt=prompt
    )
    assert samples.calls.tolist() == [0, 1, 3, 3, 3, 3]
    assert recorder.rows == [5, 4, 4]
    assert (samples.tokens[0] == 1).all()


def test_first_hitting_asks_each_sequence_at_its_own_time():
    recorder = Recorder(absorbing())
    RevealSampler(FirstHitting(), Random(), steps=None)(
        recorder, SHAPE, key=Key(0, torch.arange(6))
    )
    times = torch.stack(recorder.times)  # linear schedule: t is the noise level
    assert times.shape == (3, 6)
    assert (times.diff(dim=0) < 0).all()
    assert len(times[0].unique()) == 6


def test_event_times_are_order_statistics_of_uniforms():
    """The k-th of L openings from the noisy end: mean of 1 - alpha is 1 - k / (L + 1)."""
    number, length = 20_000, 4
    sizes = torch.ones(number, length, dtype=torch.int64)
    levels = FirstHitting().levels(sizes, key=Key(0, torch.arange(number)))
    for k in range(length):
        beta = (k + 1) / (length + 1)
        spread = math.sqrt(beta * (1 - beta) / (length + 2) / number)
        assert abs(levels[:, k].mean().item() - beta) < 4 * spread
    blocks = torch.full((number, 2), 2)
    levels = FirstHitting().levels(blocks, key=Key(0, torch.arange(number)))
    for k, mean in ((0, 2 / 5), (1, 4 / 5)):
        assert abs(levels[:, k].mean().item() - mean) < 0.01


def test_an_entropy_bound_of_nothing_opens_one_by_one_and_a_large_one_all_at_once():
    for bound, calls in ((0.0, 3), (100.0, 1)):
        sampler = RevealSampler(Even(), EntropyBound(bound), steps=None)
        samples = sampler(Oracle(LAW, absorbing()), SHAPE, key=Key(0, torch.arange(6)))
        assert (samples.calls == calls).all()


def test_the_entropy_bound_takes_the_longest_run_within_it():
    entropy = torch.tensor([[0.5, 0.1, 0.3, 9.0]], dtype=torch.float64)
    hidden = torch.tensor([[True, True, True, False]])
    count = lambda b: EntropyBound(b).count(entropy, hidden, torch.tensor([1])).item()  # noqa: E731
    assert [count(b) for b in (0.0, 0.09, 0.1, 0.39, 0.4, 5.0)] == [1, 1, 2, 2, 3, 3]


def test_confidence_prefers_sure_positions_and_margin_clear_ones():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.45, 0.3, 0.25], [0.4, 0.35, 0.25]]).log()
    column, u = torch.arange(3), torch.zeros(3, dtype=torch.float64)
    assert Confidence().priority(probs, column, u).argmax() == 0
    assert Margin().priority(probs, column, u).argmax() == 1


def test_an_order_at_a_temperature_chooses_by_the_powers_of_its_scores():
    """Gumbel noise: position i is first with probability ~ p_i^(1 / T)."""
    number, temperature = 20_000, 0.5
    top = torch.tensor([0.6, 0.3, 0.2])
    probs = torch.stack([top, 1 - top], -1).log()
    u = Key(0, torch.arange(number)).uniform(3).flatten()
    order = Confidence(temperature)
    scores = order.priority(probs.repeat(number, 1), torch.arange(3).repeat(number), u)
    first = torch.bincount(scores.reshape(number, 3).argmax(-1), minlength=3) / number
    best = torch.maximum(top, 1 - top) ** (1 / temperature)
    assert torch.allclose(first, best / best.sum(), atol=0.02)


def test_uniform_noise_hides_nothing():
    with pytest.raises(UserError, match="Uniform noise hides none; use sampler=ancestral"):
        RevealSampler(Even(), Random())(Oracle(LAW, uniform()), SHAPE, key=Key(0, torch.arange(6)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RevealSampler(Even(), Random(), steps=0), "steps must be at least 1"),
        (lambda: RevealSampler(Cosine(), Random(), temperature=0.0), "temperature must be"),
        (lambda: Confidence(-1.0), "temperature of an order"),
        (lambda: EntropyBound(-0.1), "entropy bound must be"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
