"""The grid sampler as a program: prompts, seeds, batches, calls, refusals."""

import pytest
import torch

from dlm import State, UserError
from dlm.lab import Oracle
from dlm.random import Key
from dlm.samplers import Ancestral, EvenGrid, GridSampler, Prompt
from tests.toys import correlated_law, processes, uniform

LAW = correlated_law()
SHAPE = (6, LAW.ndim)


def sampler(steps=4, **settings):
    return GridSampler(Ancestral(), EvenGrid(), steps=steps, **settings)


class Recorder:
    """An oracle that writes down which sequences it was run on."""

    def __init__(self, process, time_conditioning=True):
        self.process, self.time_conditioning = process, time_conditioning
        self.oracle, self.runs = Oracle(LAW, process), []

    def passes(self, length):
        return 1

    def hidden(self, state, t, context=None):
        self.runs.append(state.tokens.clone())
        return self.oracle.hidden(state, t)

    def predict(self, hidden, state, t):
        return self.oracle.predict(hidden, state, t)


@pytest.mark.parametrize("process", processes(), ids=repr)
class TestEveryProcess:
    def test_a_sequence_is_the_same_alone_and_in_a_batch(self, process):
        oracle, keys = Oracle(LAW, process), Key(3, torch.arange(6))
        together = sampler()(oracle, SHAPE, key=keys)
        alone = sampler()(oracle, (1, LAW.ndim), key=keys[torch.tensor([4])])
        assert torch.equal(alone.tokens[0], together.tokens[4])
        assert alone.calls[0] == together.calls[4]

    def test_seeds_repeat_and_differ(self, process):
        oracle, rows = Oracle(LAW, process), torch.arange(20)
        first, again, other = (
            sampler()(oracle, (20, LAW.ndim), key=Key(seed, rows)).tokens for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_prompts_are_kept(self, process):
        tokens = torch.tensor([[2, 0, 1]]).expand(SHAPE)
        frozen = torch.tensor([[True, False, True]]).expand(SHAPE)
        seen = []
        sampler()(
            Oracle(LAW, process),
            SHAPE,
            key=Key(0, torch.arange(6)),
            prompt=Prompt(tokens, frozen),
            on_step=lambda step: seen.append(step.state.tokens),
        )
        assert len(seen) == 4
        for state in seen:
            assert (state[:, [0, 2]] == torch.tensor([2, 1])).all()

    def test_the_result_is_clean_text(self, process):
        tokens = sampler(1)(Oracle(LAW, process), SHAPE, key=Key(0, torch.arange(6))).tokens
        assert ((tokens >= 0) & (tokens < LAW.shape[0])).all()

    def test_calls_count_the_sequences_that_were_run(self, process):
        recorder = Recorder(process)
        samples = sampler(32)(recorder, SHAPE, key=Key(0, torch.arange(6)))
        assert samples.calls.sum() == sum(len(run) for run in recorder.runs)
        assert samples.calls.max() <= sampler(32).calls(LAW.ndim)
        # 3 positions move at most a few times in 32 steps: most steps need no network
        assert samples.calls.double().mean() < 16


def test_masked_sequences_are_run_once_per_step_that_opens_a_mask():
    process = processes()[0]
    states = []
    samples = sampler(64)(
        Oracle(LAW, process),
        SHAPE,
        key=Key(0, torch.arange(6)),
        on_step=lambda step: states.append(step.state.tokens),
    )
    states.insert(0, torch.full(SHAPE, process.mask_id))
    opened = torch.stack([(a != b).any(-1) for a, b in zip(states[1:], states, strict=False)])
    assert torch.equal(samples.calls, opened.sum(0))


def test_without_time_conditioning_an_unchanged_sequence_is_not_run_again():
    """The same draws with and without the memory: same text, fewer calls."""
    conditioned, agnostic = Recorder(uniform(), True), Recorder(uniform(), False)
    agnostic.oracle.hidden = lambda state, t, context=None: torch.full(
        (*state.tokens.shape, 3), 1 / 3, dtype=torch.float64
    ).log()
    conditioned.oracle.hidden = agnostic.oracle.hidden
    key = Key(0, torch.arange(6))
    many, few = sampler(64)(conditioned, SHAPE, key=key), sampler(64)(agnostic, SHAPE, key=key)
    assert torch.equal(many.tokens, few.tokens)
    assert few.calls.sum() < many.calls.sum()
    assert few.calls.sum() == sum(len(run) for run in agnostic.runs)


def test_filters_act_on_the_posterior_that_was_asked_for():
    """On the denoiser a low temperature also amplifies the observed token."""
    process = uniform()
    oracle = Oracle(LAW, process)
    kept = {}
    for on in ("loo", "denoiser"):
        final = []
        sampler(2, temperature=0.3, filter_on=on)(
            oracle,
            (2000, LAW.ndim),
            key=Key(0, torch.arange(2000)),
            on_step=lambda step, final=final: final.append(step.state.tokens),
        )
        kept[on] = (final[0] == final[1]).double().mean().item()
    assert kept["denoiser"] > kept["loo"] + 0.03


def test_top_k_one_is_greedy():
    process = processes()[0]
    tokens = sampler(1, top_k=1)(Oracle(LAW, process), SHAPE, key=Key(0, torch.arange(6))).tokens
    marginals = [LAW.sum([j for j in range(LAW.ndim) if j != i]) for i in range(LAW.ndim)]
    expected = torch.stack([m.argmax() for m in marginals])
    assert (tokens == expected).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.5}, "top_p must be in"),
        ({"min_p": 2.0}, "min_p must be in"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        sampler(**settings)


def test_bad_prompts_are_refused():
    oracle, key = Oracle(LAW, uniform()), Key(0, torch.arange(6))
    wrong_shape = Prompt(torch.zeros(6, 2).long(), torch.zeros(6, 2).bool())
    with pytest.raises(UserError, match="the prompt has shape"):
        sampler()(oracle, SHAPE, key=key, prompt=wrong_shape)
    foreign = Prompt(torch.full(SHAPE, 9), torch.ones(SHAPE).bool())
    with pytest.raises(UserError, match="another tokenizer"):
        sampler()(oracle, SHAPE, key=key, prompt=foreign)


def test_an_oracle_refuses_a_process_of_another_size():
    with pytest.raises(UserError, match="a law over 3 symbols"):
        Oracle(LAW, uniform(symbols=4))


def test_state_at_impossible_tokens_gets_the_even_posterior():
    law = torch.zeros(2, 2, dtype=torch.float64)
    law[0, 0] = law[1, 1] = 0.5
    process = processes(symbols=2)[0]
    hidden = Oracle(law, process).hidden(
        State(torch.tensor([[0, 1]])), torch.tensor([0.5]).double()
    )
    assert not hidden.isnan().any()
