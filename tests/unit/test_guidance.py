"""Guidance against enumeration: two classes, a law for each, and the oracles of all three."""

import pytest
import torch

from dlm import Context, Denoiser, Prediction, State, UserError
from dlm.denoiser import shown_level
from dlm.guidance import ClassifierFree, ClassifierGuided, combine
from dlm.lab import Oracle, exact
from dlm.networks import DiT
from dlm.parameterizations import Denoising
from dlm.random import Key
from dlm.samplers import Ancestral, EvenGrid, GridSampler, Prompt
from tests.toys import SYMBOLS, correlated_law, double, lifted, processes, some_noise, uniform

LENGTH = 3
LAWS = [correlated_law(seed=seed) for seed in (0, 1)]
CHANCES = torch.tensor([0.3, 0.7], dtype=torch.float64)
MIXTURE = CHANCES[0] * LAWS[0] + CHANCES[1] * LAWS[1]
LEVELS = [0.02, 0.4, 0.9]  # alpha
every_process = pytest.mark.parametrize("process", processes(), ids=repr)
SEEN = [process for process in processes() if not process.noise_conditioned]
every_seen_process = pytest.mark.parametrize("process", SEEN, ids=repr)  # by a classifier
every_level = pytest.mark.parametrize("alpha", LEVELS)


class Family:
    """The oracles of the classes and, where there is no condition, of their mixture."""

    time_conditioning = True

    def __init__(self, process):
        self.process, self.runs = process, 0
        self.oracles = [Oracle(law, process) for law in (*LAWS, MIXTURE)]

    def passes(self, length):
        return 1

    def hidden(self, state, t, context=None):
        self.runs += len(state.tokens)
        condition = None if context is None else context.condition
        if condition is None:
            return self.oracles[-1].hidden(state, t)
        all_of_them = torch.stack([oracle.hidden(state, t) for oracle in self.oracles])
        return all_of_them[condition % 3, torch.arange(len(condition))]

    def predict(self, hidden, state, t):
        return Prediction(self.process, state, t, log_loo=hidden)


class ExactClassifier:
    """p_t(y | z) by Bayes' rule from the noised laws; the vectors are one-hot."""

    def __init__(self, process):
        self.process, self.passes = process, 0
        self.table = torch.eye(process.num_states, dtype=torch.float64)

    def __call__(self, vectors, level):
        self.passes += len(vectors)
        t = self.process.schedule.inverse(level[0].sigmoid())
        assert (level == level[0]).all()
        laws = [exact.noised_law(law, self.process, t) for law in LAWS]
        joint = CHANCES[:, None] * torch.stack(laws)
        table = joint.reshape(2, *[self.process.num_states] * LENGTH)
        return torch.einsum("yabc,na,nb,nc->ny", table, *vectors.unbind(1)).log().log_softmax(-1)


def predicted(predictor, process, alpha, condition):
    """The prediction at every state, and which states the mixture reaches."""
    t = process.schedule.inverse(double(alpha))
    noise = some_noise(process, LENGTH)
    states = exact.with_noise(exact.all_states(process.num_states, LENGTH), noise)
    context = Context(condition=torch.full_like(states.tokens[:, 0], condition))
    times = t.expand(states.tokens.shape)
    prediction = predictor.predict(predictor.hidden(states, t[None], context), states, times)
    chance = exact.noised_law(MIXTURE, process, t, noise)
    reached = (chance > 1e-9)[:, None] & process.active(states)
    return prediction, reached


def plain(law, process, alpha):
    return predicted(Oracle(law, process), process, alpha, 0)


@every_process
@every_level
class TestClassifierFree:
    def test_one_and_zero_are_the_two_models(self, process, alpha):
        for scale, law in ((1.0, LAWS[1]), (0.0, MIXTURE)):
            guided, _ = predicted(ClassifierFree(Family(process), scale), process, alpha, 1)
            assert torch.equal(guided.log_loo, plain(law, process, alpha)[0].log_loo)

    @pytest.mark.parametrize("scale", [0.5, 3.0])
    def test_it_is_the_power_of_the_ratio(self, process, alpha, scale):
        guided, at = predicted(ClassifierFree(Family(process), scale), process, alpha, 1)
        given, free = (plain(law, process, alpha)[0].log_loo.exp() for law in (LAWS[1], MIXTURE))
        weight = free * torch.where(free > 0, given / free, 0.0) ** scale
        expected = weight / weight.sum(-1, keepdim=True)
        assert torch.allclose(guided.log_loo.exp()[at], expected[at], atol=1e-12)

    def test_combining_denoisers_is_the_same(self, process, alpha):
        """The weights sum to one, so the evidence of the observed token comes out once."""
        guided, at = predicted(ClassifierFree(Family(process), 3.0), process, alpha, 1)
        given, free = (plain(law, process, alpha)[0].log_denoiser for law in (LAWS[1], MIXTURE))
        mixed = combine(given, free, 3.0)
        assert torch.allclose(guided.log_denoiser.exp()[at], mixed.exp()[at], atol=1e-12)


@every_process
def test_combining_reverse_steps_is_another_thing(process):
    """Under absorbing noise it also changes how likely a mask opens, which nobody asked for."""
    alpha, scale = 0.4, 3.0
    s = process.schedule.inverse(double(alpha + 0.1))
    guided, at = predicted(ClassifierFree(Family(process), scale), process, alpha, 1)
    both = [process.posterior(plain(law, process, alpha)[0], s) for law in (LAWS[1], MIXTURE)]
    ours, theirs = process.posterior(guided, s).exp()[at], combine(*both, scale).exp()[at]
    assert (ours - theirs).abs().max() > 0.02
    if process.mask_id is not None and not process.time_conditioned:
        opens = (process.schedule.alpha(s) - alpha) / (1 - alpha)
        assert torch.allclose(1 - ours[:, process.mask_id], opens)
        assert (1 - theirs[:, process.mask_id] - opens).abs().max() > 0.02


def test_the_support_is_that_of_the_conditional_branch():
    given, free = (
        torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log(),
        torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]).log(),
    )
    mixed = combine(given, free, 2.0).exp()
    assert not mixed.isnan().any()
    assert torch.equal(mixed > 0, given > -torch.inf)


@every_seen_process
@every_level
class TestClassifierGuided:
    def test_it_is_the_conditioned_model_when_the_classifier_is_exact(self, process, alpha):
        guided = ClassifierGuided(Family(process), ExactClassifier(process), 1.0)
        for label in (0, 1):
            prediction, at = predicted(guided, process, alpha, label)
            expected, _ = plain(LAWS[label], process, alpha)
            gap = (prediction.log_loo.exp() - expected.log_loo.exp())[at].abs().max()
            assert gap < 1e-10, (label, gap)
            free, _ = plain(MIXTURE, process, alpha)
            assert (free.log_loo.exp() - expected.log_loo.exp())[at].abs().max() > 0.1

    def test_zero_and_no_class_are_the_model(self, process, alpha):
        expected, at = plain(MIXTURE, process, alpha)
        classifier = ExactClassifier(process)
        for scale, label in ((0.0, 1), (2.0, -1)):
            for first_order in (False, True):
                guided = ClassifierGuided(Family(process), classifier, scale, first_order)
                prediction, _ = predicted(guided, process, alpha, label)
                gap = (prediction.log_loo.exp() - expected.log_loo.exp())[at].abs().max()
                assert gap < 1e-10

    def test_the_first_order_form_is_the_taylor_series(self, process, alpha):
        t = process.schedule.inverse(double(alpha))
        classifier, step = ExactClassifier(process), 1e-6
        state = State(torch.tensor([[0, process.num_states - 1, 1]]))
        guided = ClassifierGuided(Family(process), classifier, 2.0, first_order=True)
        context = Context(condition=torch.tensor([1]))
        said = guided.hidden(state, t[None], context)[..., process.num_states :]
        level = shown_level(process, t)[None]
        vectors = classifier.table[state.tokens]
        for i in range(LENGTH):
            for v in range(process.num_states):
                moved = vectors.clone()
                moved[:, i, v] += step
                slope = (classifier(moved, level) - classifier(vectors, level))[0, 1] / step
                assert slope.item() == pytest.approx(said[0, i, v].item(), rel=1e-3, abs=1e-3)


@every_seen_process
def test_the_first_order_form_uses_the_gradient_as_tilt(process):
    """A classifier that is linear in the one-hot input in logits of two classes, small slopes."""

    class Linear:
        def __init__(self):
            generator = torch.Generator().manual_seed(0)
            self.table = torch.eye(process.num_states, dtype=torch.float64)
            self.weight = torch.rand(LENGTH, process.num_states, generator=generator).double()

        def __call__(self, vectors, level):
            logit = 1e-3 * (vectors * self.weight).sum((1, 2))
            return torch.stack([logit, -logit], -1).log_softmax(-1)

    answers = [
        predicted(ClassifierGuided(Family(process), Linear(), 300.0, first), process, 0.4, 0)
        for first in (False, True)
    ]
    (slow, at), (fast, _) = answers
    free, _ = plain(MIXTURE, process, 0.4)
    assert (slow.log_loo.exp() - fast.log_loo.exp())[at].abs().max() < 1e-4
    assert (slow.log_loo.exp() - free.log_loo.exp())[at].abs().max() > 1e-2


@every_seen_process
def test_at_the_start_the_class_counts_too(process):
    """At alpha = 0 the ratios are silent under uniform noise; those at a small alpha serve."""
    guided = ClassifierGuided(Family(process), ExactClassifier(process), 1.0)
    prediction, at = predicted(guided, process, 0.0, 1)
    expected, _ = plain(LAWS[1], process, 0.0)
    assert (prediction.log_loo.exp() - expected.log_loo.exp())[at].abs().max() < 5e-3


class With:
    """A predictor with its context bound, for the exact analyses."""

    time_conditioning = True

    def __init__(self, predictor, condition):
        self.process, self.predictor, self.condition = predictor.process, predictor, condition

    def hidden(self, state, t, context=None):
        condition = torch.full_like(state.tokens[:, 0], self.condition)
        return self.predictor.hidden(state, t, Context(condition=condition))

    def predict(self, hidden, state, t):
        return self.predictor.predict(hidden, state, t)


def output(predictor, steps=8):
    times = predictor.process.schedule.inverse(EvenGrid().levels(steps, predictor.process.schedule))
    return exact.output_law(predictor, Ancestral(), times, LENGTH)


@every_process
def test_the_sampler_draws_from_the_class(process):
    expected = output(Oracle(LAWS[1], process))
    free = output(With(ClassifierFree(Family(process), 1.0), 1))
    assert exact.total_variation(free, expected) < 1e-12
    assert exact.total_variation(expected, exact.embed(MIXTURE, process)) > 0.1
    if process in SEEN:
        guided = output(With(ClassifierGuided(Family(process), ExactClassifier(process), 1.0), 1))
        assert exact.total_variation(guided, expected) < 1e-3  # the start, where alpha = 0


@every_process
def test_a_larger_scale_leans_towards_the_class(process):
    """The expected log p(y | x) of samples grows with the scale."""
    log_posterior = torch.zeros([process.num_states] * LENGTH, dtype=torch.float64)
    inner = (slice(0, SYMBOLS),) * LENGTH
    log_posterior[inner] = (CHANCES[1] * LAWS[1] / MIXTURE).log()
    family = Family(process)
    laws = [output(With(ClassifierFree(family, scale), 1), 4) for scale in (0.0, 1.0, 3.0)]
    if process in SEEN:
        classifier = ExactClassifier(process)
        laws.append(output(With(ClassifierGuided(family, classifier, 3.0), 1), 4))
    none, one, *three = [(law * log_posterior.flatten()).sum() for law in laws]
    assert none + 0.05 < one < min(three) - 0.02


def guides(process):
    family, classifier = Family(process), ExactClassifier(process)
    return {
        "free": ClassifierFree(family, 2.0),
        "prompt": ClassifierFree(family, 2.0, drop="prompt"),
        "guided": ClassifierGuided(family, classifier, 2.0),
        "first": ClassifierGuided(family, classifier, 2.0, first_order=True),
    }


@every_seen_process
@pytest.mark.parametrize("name", ["free", "prompt", "guided", "first"])
class TestSampling:
    def sample(self, process, name, rows, on_step=None):
        frozen = torch.tensor([[True, False, False]]).expand(len(rows), -1)
        prompt = Prompt(torch.full((len(rows), LENGTH), 2), frozen)
        predictor = guides(process)[name]
        samples = GridSampler(Ancestral(), EvenGrid(), steps=5)(
            predictor,
            (len(rows), LENGTH),
            key=Key(3, rows),
            prompt=prompt,
            context=Context(condition=rows % 2),
            on_step=on_step,
        )
        return samples, predictor

    def test_the_prompt_is_kept(self, process, name):
        seen = []
        self.sample(process, name, torch.arange(6), lambda step: seen.append(step.state.tokens))
        assert len(seen) == 5
        assert all((tokens[:, 0] == 2).all() for tokens in seen)

    def test_a_sequence_is_the_same_alone(self, process, name):
        together, _ = self.sample(process, name, torch.arange(6))
        for i in (1, 4):
            alone, _ = self.sample(process, name, torch.tensor([i]))
            assert torch.equal(alone.tokens[0], together.tokens[i])
            assert alone.calls[0] == together.calls[i]

    def test_calls_are_all_passes(self, process, name):
        samples, predictor = self.sample(process, name, torch.arange(6))
        runs = predictor.predictor.runs
        if name in ("free", "prompt"):
            assert predictor.passes(LENGTH) == 2
        else:
            runs += predictor.classifier.passes * (1 + (name == "first"))  # forward and backward
        assert samples.calls.sum() == runs


@every_process
def test_dropping_the_prompt_hides_it_from_one_branch(process):
    states = exact.with_noise(exact.all_states(SYMBOLS, LENGTH), some_noise(process, LENGTH))
    frozen = torch.tensor([True, False, False]).expand(states.tokens.shape)
    key, t = Key(0, torch.zeros(len(states.tokens), dtype=torch.int64)), double([0.5])
    context = Context(frozen=frozen, key=key)
    hidden = ClassifierFree(Family(process), 2.0, drop="prompt").hidden(states, t, context).exp()
    given, free = (x.unflatten(0, (SYMBOLS, -1)) for x in hidden.chunk(2, dim=-1))
    for v in (1, 2):  # the first token, the prompt, varies slowest
        assert torch.equal(free[0], free[v])
        assert (given[0] - given[v])[:, 1:].abs().max() > 0.05


def test_a_masked_prompt_is_the_exact_marginal():
    process = processes()[0]
    t = double([0.5])
    state = State(torch.tensor([[2, 1, process.mask_id]]))
    context = Context(frozen=torch.tensor([[True, False, False]]), key=Key(0, torch.tensor([0])))
    guided = ClassifierFree(Family(process), 0.0, drop="prompt")
    prediction = guided.predict(guided.hidden(state, t, context), state, t)
    expected = MIXTURE.sum(0)[1]
    assert torch.allclose(prediction.log_loo[0, 2, :SYMBOLS].exp(), expected / expected.sum())


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_a_network_with_classes_can_be_guided(time_conditioning):
    process = processes()[time_conditioning]
    torch.manual_seed(0)
    net = DiT(process.num_states, 8, 16, 1, 2, time_conditioning=time_conditioning, num_classes=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    denoiser = Denoiser(net, process, Denoising())
    state = process.prior((2, 8), key=Key(0, torch.arange(2)))
    context, t = Context(condition=torch.tensor([0, 1])), double([0.9])
    guided = ClassifierFree(denoiser, 2.0)
    prediction = guided.predict(guided.hidden(state, t, context), state, t)
    given, free = (denoiser(state, t, context=c).log_loo for c in (context, None))
    assert torch.allclose(prediction.log_loo, combine(given, free, 2.0))
    assert not torch.allclose(given, free)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_below_zero_are_refused(scale):
    family = Family(uniform())
    with pytest.raises(UserError, match="guidance.scale must be at least 0, got"):
        ClassifierFree(family, scale)
    with pytest.raises(UserError, match="guidance.scale must be at least 0, got"):
        ClassifierGuided(family, ExactClassifier(uniform()), scale)


def test_a_classifier_needs_to_see_all_of_the_state():
    with pytest.raises(UserError, match="does not see the noise tokens of LiftedUniform"):
        ClassifierGuided(Family(lifted()), ExactClassifier(uniform()), 1.0)


def test_there_must_be_a_prompt_to_drop():
    state, t = State(torch.zeros(1, LENGTH, dtype=torch.int64)), double([0.5])
    with pytest.raises(UserError, match="there is no prompt to guide by"):
        ClassifierFree(Family(uniform()), 2.0, drop="prompt").hidden(state, t)
