"""Block sampling: its exact law, prompts anywhere, streaming, the budget, rows by themselves."""

from itertools import pairwise

import pytest
import torch

from dlm import Denoiser, UserError
from dlm.denoiser import Context
from dlm.lab import Oracle, exact
from dlm.networks import DiT
from dlm.parameterizations import Denoising
from dlm.random import Key
from dlm.samplers import Ancestral, EvenGrid, GridSampler, Prompt, Samples
from dlm.samplers.base import Sampler
from dlm.samplers.blocks import BlockSampler, Window
from dlm.samplers.prompts import Template, pack
from tests.toys import SYMBOLS, absorbing, double, processes

LENGTH = 7
MOVES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.1, 0.4]], dtype=torch.float64)


def chain_table(length, moves=MOVES):
    """The law of `length` tokens of the stationary Markov chain, (V,) * length."""
    start = torch.linalg.matrix_power(moves, 200)[0]
    table = start
    for _ in range(length - 1):
        table = table[..., None] * moves
    return table / table.sum()


class Windows:
    """Oracles of a law on sequences of every length up to one; notes the lengths it is asked."""

    time_conditioning = True

    def __init__(self, process, table=chain_table, longest=5):
        self.process, self.asked = process, []
        self.oracles = {n: Oracle(table(n), process) for n in range(1, longest + 1)}

    def passes(self, length):
        return 1

    def hidden(self, state, t, context=None):
        self.asked.append(state.tokens.shape)
        return self.oracles[state.tokens.shape[1]].hidden(state, t)

    def predict(self, hidden, state, t):
        return self.oracles[1].predict(hidden, state, t)


class Scripted(Sampler):
    """Writes given texts and keeps their exact probabilities: the law of a sampler that is exact.

    One free position after the other, each with its law given what the window shows.
    """

    def __init__(self, texts, windows):
        self.texts, self.windows = texts, iter(windows)
        self.log_prob = torch.zeros(len(texts), dtype=torch.float64)

    def calls(self, length):
        return length

    def refusal(self, process):
        return None

    def __call__(self, predictor, shape, *, key, prompt=None, context=None, on_step=None):
        left, _, stop = next(self.windows)
        assert prompt is not None
        assert shape == (len(self.texts), stop - left)
        target = self.texts[:, left:stop]
        assert (prompt.tokens == target)[prompt.frozen].all()
        process, known = predictor.process, prompt.frozen.clone()
        state = process.pin(process.prior(shape, key=key), prompt.tokens, known)
        t = double(0.5)[None]
        for i in range(shape[1]):
            prediction = predictor.predict(predictor.hidden(state, t), state, t)
            law = prediction.log_loo[:, i].gather(1, target[:, i : i + 1])[:, 0]
            self.log_prob += torch.where(known[:, i], 0.0, law)
            known[:, i] = True
            state = process.pin(state, target, known)
        return Samples(target, torch.full((shape[0],), shape[1]))


def block_law(length, size, context):
    """The exact law of block sampling on the chain, flat."""
    texts = exact.all_states(SYMBOLS, length)
    inner = Scripted(texts, BlockSampler(Scripted(texts, []), size, context).windows(length))
    sampler = BlockSampler(inner, size, context)
    sampler(Windows(absorbing()), (len(texts), length), key=Key(0, torch.arange(len(texts))))
    return inner.log_prob.exp()


@pytest.mark.parametrize(("size", "context"), [(2, 1), (1, 1), (3, 2), (2, 3), (5, 0)])
def test_a_markov_law_is_exact(size, context):
    assert exact.total_variation(block_law(5, size, context), chain_table(5).flatten()) < 1e-12


def test_without_context_blocks_are_independent():
    law = block_law(4, 2, 0).reshape([SYMBOLS] * 4)
    pair = chain_table(2)
    assert exact.total_variation(law, pair[:, :, None, None] * pair) < 1e-12
    assert exact.total_variation(law, chain_table(4)) > 0.1


def sampler(size=2, context=2, steps=3):
    return BlockSampler(GridSampler(Ancestral(), EvenGrid(), steps=steps), size, context)


def key(batch=6, seed=0):
    return Key(seed, torch.arange(batch))


def test_windows_slide():
    assert sampler(size=3, context=2).windows(8) == [
        Window(0, 0, 3),
        Window(1, 3, 6),
        Window(4, 6, 8),
    ]
    assert sampler(size=9, context=2).windows(4) == [Window(0, 0, 4)]


def test_drawn_texts_follow_the_chain():
    """A real sampler, one position a step on average and far more steps: pairs across a seam."""
    rows = 4000
    made = sampler(size=2, context=1, steps=24)
    tokens = made(Windows(absorbing()), (rows, 5), key=key(rows)).tokens
    for left in range(4):  # seams lie between 1 and 2, and between 3 and 4
        pairs = torch.zeros(SYMBOLS, SYMBOLS).double()
        pairs.index_put_((tokens[:, left], tokens[:, left + 1]), double(1 / rows), accumulate=True)
        expected = chain_table(2)
        chi_square = rows * ((pairs - expected) ** 2 / expected).sum()
        assert chi_square < 30  # 8 degrees of freedom: 1e-4 is 31.8


@pytest.mark.parametrize("process", processes(), ids=repr)
class TestEveryProcess:
    def test_prompts_are_kept_everywhere(self, process):
        frozen = torch.tensor([1, 0, 0, 0, 1, 0, 1]).bool().expand(6, LENGTH)
        given = torch.tensor([2, 0, 0, 0, 1, 0, 0]).expand(6, LENGTH)
        seen = []
        samples = sampler()(
            Windows(process),
            (6, LENGTH),
            key=key(),
            prompt=Prompt(given, frozen),
            on_step=seen.append,
        )
        assert (samples.tokens < SYMBOLS).all()
        for step in seen:
            assert step.state.tokens.shape == step.confidence.shape == (6, LENGTH)
            assert (step.state.tokens == given)[frozen].all()
        assert torch.equal(seen[-1].state.tokens, samples.tokens)

    def test_a_row_is_the_same_alone(self, process):
        together = sampler()(Windows(process), (6, LENGTH), key=key())
        alone = sampler()(Windows(process), (1, LENGTH), key=key()[torch.tensor([4])])
        assert torch.equal(alone.tokens[0], together.tokens[4])
        assert alone.calls[0] == together.calls[4]

    def test_allowed_tokens_are_cut_into_windows(self, process):
        places = torch.ones(1, LENGTH, process.num_states, dtype=torch.bool)
        places[:, 3] = places[:, 6] = False
        places[:, 3, 1] = places[:, 6, 0] = True
        everywhere = torch.arange(process.num_states) == 2
        for allowed, expected in ((places, {3: 1, 6: 0}), (everywhere, dict.fromkeys(range(7), 2))):
            nothing = torch.zeros(6, LENGTH)
            prompt = Prompt(nothing.long(), nothing.bool(), allowed)
            tokens = sampler()(Windows(process), (6, LENGTH), key=key(), prompt=prompt).tokens
            assert all((tokens[:, place] == token).all() for place, token in expected.items())
            assert (tokens[:, 0] != tokens[0, 0]).any() == (allowed is places)


def test_blocks_are_handed_over_when_they_are_final():
    events = []
    samples = sampler()(
        Windows(absorbing()),
        (6, LENGTH),
        key=key(),
        on_step=events.append,
        on_block=events.append,
    )
    blocks = [event for event in events if not hasattr(event, "state")]
    assert [block.start for block in blocks] == [0, 2, 4, 6]
    assert torch.equal(torch.cat([block.tokens for block in blocks], 1), samples.tokens)
    assert torch.equal(blocks[-1].calls, samples.calls)
    assert all((later.calls > earlier.calls).all() for earlier, later in pairwise(blocks))
    for block in blocks:  # every step after it shows its tokens, no step before it had all of them
        width = block.tokens.shape[1]
        at = events.index(block)
        for event in events[at:]:
            if hasattr(event, "state"):
                shown = event.state.tokens[:, block.start : block.start + width]
                assert torch.equal(shown, block.tokens)
    steps = [event for event in events if hasattr(event, "state")]
    assert [step.index for step in steps] == list(range(len(steps)))
    assert (steps[0].state.tokens[:, 2:] == SYMBOLS).all()  # what was not begun is noise
    assert torch.equal(steps[-1].calls, samples.calls)
    assert not steps[-1].confidence.isnan().any()


@pytest.mark.parametrize("process", [p for p in processes() if p.shows_noise], ids=repr)
def test_steps_show_what_is_noise_and_what_is_known(process):
    steps = []
    sampler(steps=40)(Windows(process), (6, LENGTH), key=key(), on_step=steps.append)
    noise = process.active(steps[0].state)
    assert noise[:, :2].double().mean() > 0.8
    assert noise[:, 2:].all()
    assert not process.active(steps[-1].state)[:, :6].any()  # blocks before the last


def test_calls_are_those_of_the_windows():
    class Counting(Sampler):
        def calls(self, length):
            return length

        def refusal(self, process):
            return "no"

        def __call__(self, predictor, shape, **rest):
            raise AssertionError

    made = BlockSampler(Counting(), size=3, context=2)
    assert made.calls(8) == 3 + 5 + 4
    assert made.refusal(absorbing()) == "no"
    with pytest.raises(UserError, match="no"):
        made(Windows(absorbing()), (1, 8), key=key(1))
    samples = sampler(steps=3)(Windows(absorbing()), (6, LENGTH), key=key())
    assert (samples.calls <= sampler(steps=3).calls(LENGTH)).all()
    assert sampler(steps=3).calls(LENGTH) == 12


def test_blocks_that_are_given_take_no_call():
    frozen = (torch.arange(LENGTH) < 4).expand(2, LENGTH)
    predictor = Windows(absorbing())
    prompt = Prompt(torch.ones(2, LENGTH, dtype=torch.int64), frozen)
    blocks, steps = [], []
    samples = sampler(steps=3)(
        predictor,
        (2, LENGTH),
        key=key(2),
        prompt=prompt,
        on_step=steps.append,
        on_block=blocks.append,
    )
    assert len(steps) == 2 * 3
    assert [block.start for block in blocks] == [0, 2, 4, 6]
    assert (blocks[1].calls == 0).all()
    assert {length for _, length in predictor.asked} == {4, 3}
    assert (samples.calls > 0).all()


def test_blocks_have_keys_of_their_own():
    """A uniform product law: the same key would write the same block again."""
    table = lambda n: torch.full([SYMBOLS] * n, 1 / SYMBOLS**n).double()  # noqa: E731
    made = BlockSampler(GridSampler(Ancestral(), EvenGrid(), steps=1), 3, 0)
    tokens = made(Windows(absorbing(), table), (20, 6), key=key(20)).tokens
    assert not torch.equal(tokens[:, :3], tokens[:, 3:])
    inner = made.sampler(Windows(absorbing(), table), (20, 3), key=key(20).fold("block", 1))
    assert torch.equal(tokens[:, 3:], inner.tokens)


def network(length=8):
    torch.manual_seed(0)
    backbone = DiT(SYMBOLS + 1, length, 16, 2, 2, time_conditioning=False)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return Denoiser(backbone, absorbing(), Denoising()).double()


def test_text_may_be_longer_than_the_network_takes():
    made = sampler(size=4, context=4)
    samples = made(network(), (3, 30), key=key(3))
    assert samples.tokens.shape == (3, 30)
    first = made(network(), (3, 10), key=key(3))  # what comes later changes nothing before it
    assert torch.equal(first.tokens[:, :8], samples.tokens[:, :8])
    with pytest.raises(UserError, match="a sequence has 9 tokens, the network was built for"):
        sampler(size=4, context=5)(network(), (3, 30), key=key(3))


def test_padding_is_cut_into_windows():
    templates = [Template(torch.zeros(n).long(), torch.zeros(n).bool()) for n in (9, 21, 14)]
    prompt, context, lengths = pack(templates, pad=0)
    made = sampler(size=4, context=4)
    samples = made(network(), (3, 21), key=key(3), prompt=prompt, context=context)
    for row, length in enumerate(lengths.tolist()):
        alone = made(network(), (1, length), key=key(3)[torch.tensor([row])])
        assert torch.equal(samples.tokens[row, :length], alone.tokens[0])
        assert samples.calls[row] == alone.calls[0]


def test_the_condition_reaches_every_block():
    class Asked(Windows):
        def hidden(self, state, t, context=None):
            assert context.condition is not None
            assert len(context.condition) == len(state.tokens)
            return super().hidden(state, t)

    context = Context(condition=torch.arange(6))
    sampler()(Asked(absorbing()), (6, LENGTH), key=key(), context=context)


@pytest.mark.parametrize("settings", [{"size": 0}, {"context": -1}])
def test_sizes_that_make_no_block_are_refused(settings):
    with pytest.raises(UserError, match=r"size >= 1 and context >= 0"):
        sampler(**settings)


def test_a_prompt_of_another_shape_is_refused():
    prompt = Prompt(torch.zeros(2, 4).long(), torch.zeros(2, 4).bool())
    with pytest.raises(UserError, match="the prompt has shape"):
        sampler()(Windows(absorbing()), (2, LENGTH), key=key(2), prompt=prompt)
