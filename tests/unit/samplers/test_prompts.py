"""Templates of different lengths in one batch, and constraints on what may be written."""

import pytest
import torch

from dlm import Denoiser, UserError
from dlm.lab import Oracle
from dlm.networks import DiT
from dlm.parameterizations import LeaveOneOut
from dlm.random import Key
from dlm.samplers import (
    Ancestral,
    Auto,
    ByConfidence,
    EvenGrid,
    Gibbs,
    GridSampler,
    InformationCurve,
    Prompt,
    ReMDM,
)
from dlm.samplers.base import check_prompt
from dlm.samplers.orders import Confidence, Random
from dlm.samplers.plans import Balanced, Even, FirstHitting, FromProfile
from dlm.samplers.prompts import Template, cut, pack
from dlm.samplers.reveal import RevealSampler
from tests.toys import SYMBOLS, absorbing, correlated_law, processes

LENGTHS = [5, 9, 2, 7]


def template(length, given=(), allowed=None):
    """A template with tokens given at some places, the place modulo three."""
    frozen = torch.zeros(length, dtype=torch.bool)
    frozen[list(given)] = True
    return Template(torch.where(frozen, torch.arange(length) % SYMBOLS, 0), frozen, allowed)


def network(process, length=9):
    """A network whose answers depend on everything it attends to."""
    torch.manual_seed(1)
    settings = {
        "time_conditioning": process.time_conditioned,
        "noise_conditioning": process.noise_conditioned,
    }
    backbone = DiT(process.num_states, length, 16, 2, 2, **settings)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Denoiser(backbone, process, LeaveOneOut())


def sampler(steps=4, **settings):
    return GridSampler(Ancestral(), EvenGrid(), steps=steps, **settings)


SAMPLERS = {
    "auto": Auto(steps=4, repetition_penalty=3.0),
    "grid": sampler(),
    "penalty": sampler(repetition_penalty=3.0),
    "ngram": sampler(steps=8, no_repeat_ngram=1),
    "gibbs": sampler(steps=8, corrector=Gibbs(positions=2)),
    "remasking": GridSampler(ReMDM(ByConfidence()), EvenGrid(), steps=8),
    "reveal": RevealSampler(Balanced(), Random(), steps=4, repetition_penalty=3.0),
    "first hitting": RevealSampler(FirstHitting(), Random(), steps=None),
    "confident": RevealSampler(Even(), Confidence(temperature=1.0), steps=3, no_repeat_ngram=1),
}
PAIRS = [
    pytest.param(process, name, id=f"{type(process).__name__}-{name}")
    for process in processes()
    for name, made in SAMPLERS.items()
    if made.refusal(process) is None
]


@pytest.mark.parametrize(("process", "name"), PAIRS)
def test_a_sequence_is_the_same_alone_and_padded(process, name):
    """In float32 a token at the very edge between two could differ; of these none does."""
    made = SAMPLERS[name]
    templates = [template(n, given=[1]) for n in LENGTHS]
    prompt, context, lengths = pack(templates, pad=2)
    key = Key(3, torch.arange(4))
    samples = made(network(process), (4, 9), key=key, prompt=prompt, context=context)
    for row, text in enumerate(cut(samples.tokens, lengths)):
        prompt, context, _ = pack([templates[row]], pad=2)
        shape, own = (1, LENGTHS[row]), key[torch.tensor([row])]
        alone = made(network(process), shape, key=own, prompt=prompt, context=context)
        assert torch.equal(text, alone.tokens[0])
        assert samples.calls[row] == alone.calls[0]
        assert text[1] == 1


def test_a_measured_plan_opens_the_same_positions_alone_and_padded(tmp_path):
    """Padding is not given: each text uses its own part of the curve."""
    InformationCurve((0.0, 0.0, 0.1, 0.2, 0.7, 1.5, 1.6, 1.7, 1.7)).save(tmp_path / "curve.json")
    made = RevealSampler(FromProfile(str(tmp_path / "curve.json")), Random(), steps=3)
    predictor, key = network(absorbing()), Key(3, torch.arange(4))

    def reached(templates, rows):
        """The positions that are open after each step, and the texts."""
        prompt, context, lengths = pack(templates, pad=2)
        steps = []
        shape = (len(templates), int(lengths.max()))
        settings = {"prompt": prompt, "context": context}
        samples = made(predictor, shape, key=key[rows], on_step=steps.append, **settings)
        done = torch.stack([step.alpha for step in steps], -1)
        return done.tolist(), cut(samples.tokens, lengths)

    templates = [template(n, given=[1]) for n in (5, 9, 3, 7)]
    together, texts = reached(templates, torch.arange(4))
    for row, text in enumerate(texts):
        (alone,), (own,) = reached([templates[row]], torch.tensor([row]))
        assert together[row] == alone
        assert torch.equal(text, own)


@pytest.mark.parametrize("process", processes(), ids=repr)
class TestPadding:
    def test_the_padding_token_is_seen_by_no_one(self, process):
        templates = [template(n) for n in LENGTHS]
        texts = []
        for pad in (0, 2):
            prompt, context, lengths = pack(templates, pad=pad)
            key = Key(3, torch.arange(4))
            tokens = sampler()(
                network(process), (4, 9), key=key, prompt=prompt, context=context
            ).tokens
            texts.append(torch.cat(cut(tokens, lengths)))
        assert torch.equal(*texts)


def test_one_batch_of_any_spans():
    prefix, suffix = template(4, given=[0, 1]), template(6, given=[5])
    infill = template(5, given=[0, 2, 4])
    prompt, context, lengths = pack([prefix, suffix, infill], pad=1)
    assert lengths.tolist() == [4, 6, 5]
    assert prompt.frozen.tolist() == [
        [True, True, False, False, True, True],
        [False] * 5 + [True],
        [True, False, True, False, True, True],
    ]
    assert prompt.tokens[0].tolist() == [0, 1, 0, 0, 1, 1]
    assert context.documents.tolist() == [[0, 0, 0, 0, -1, -1], [0] * 6, [0] * 5 + [-1]]
    assert [len(text) for text in cut(prompt.tokens, lengths)] == [4, 6, 5]
    assert torch.equal(cut(prompt.tokens, lengths)[0], prefix.tokens)


def test_equal_lengths_need_no_documents():
    assert pack([template(4), template(4)], pad=0).context.documents is None


def only(*tokens, size=SYMBOLS):
    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[list(tokens)] = True
    return allowed


def test_allowed_tokens_stay_small_where_they_can():
    shared = only(1)
    same = pack([template(2, allowed=shared), template(3, allowed=shared)], pad=0)
    assert same.prompt.allowed.shape == (1, 1, SYMBOLS)
    places = torch.stack([only(0), only(1, 2)])
    repeated = [template(2, allowed=places)] * 3
    assert pack(repeated, pad=0).prompt.allowed.shape == (1, 2, SYMBOLS)
    mixed = pack([template(3), template(2, allowed=places), template(1, allowed=shared)], pad=0)
    assert mixed.prompt.allowed.shape == (3, 3, SYMBOLS)
    assert mixed.prompt.allowed[0].all()
    assert torch.equal(mixed.prompt.allowed[1, :2], places)
    assert mixed.prompt.allowed[2, 0].tolist() == [False, True, False]
    assert pack([template(2)], pad=0).prompt.allowed is None
    other = pack([template(2, allowed=only(0)), template(2, allowed=only(1))], pad=0)
    assert torch.equal(other.prompt.allowed[:, 1], torch.stack([only(0), only(1)]))
    two = pack([template(2, allowed=places), template(3, allowed=shared)], pad=0)
    assert torch.equal(two.prompt.allowed[0, :2], places)


@pytest.mark.parametrize("process", processes(), ids=repr)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"filter_on": "denoiser"}])
def test_every_sample_obeys(process, settings):
    """At each place other tokens, whatever the noise shows on the way."""
    size, rows = process.num_states, 200
    places = torch.stack([only(0, 2, size=size), only(1, size=size), only(1, 2, size=size)])
    key = Key(0, torch.arange(rows))
    nothing = torch.zeros(rows, 3, dtype=torch.bool)
    prompt = Prompt(nothing.long(), nothing, places)
    oracle = Oracle(correlated_law(), process)
    tokens = sampler(**settings)(oracle, (rows, 3), key=key, prompt=prompt).tokens
    assert torch.stack([places[i, tokens[:, i]] for i in range(3)]).all()
    assert len(tokens[:, 0].unique()) == len(tokens[:, 2].unique()) == 2


@pytest.mark.parametrize(
    ("templates", "sentence"),
    [
        ([], "there is no template to pack"),
        ([template(0)], "of one shape"),
        ([Template(torch.zeros(3).long(), torch.zeros(2).bool())], "of one shape"),
        ([Template(torch.zeros(1, 3).long(), torch.zeros(1, 3).bool())], "of one shape"),
        ([template(3, allowed=torch.ones(2, SYMBOLS).bool())], r"or \(3, K\), got \(2, 3\)"),
        ([template(3, allowed=torch.ones(1, 1, SYMBOLS).bool())], "have the shape"),
    ],
)
def test_templates_that_do_not_fit_are_refused(templates, sentence):
    with pytest.raises(UserError, match=sentence):
        pack(templates, pad=0)


NONE = torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (Prompt(NONE[:, :2].long(), NONE[:, :2]), r"the prompt has shape \(2, 2\)"),
        (Prompt(NONE + SYMBOLS + 1, ~NONE), r"a token outside \[0, 4\)"),
        (Prompt(NONE.long() - 1, ~NONE), r"a token outside \[0, 4\)"),
        (Prompt(NONE + SYMBOLS, ~NONE), "MASK as a token"),
        (Prompt(NONE.long(), NONE, torch.ones(2, SYMBOLS).bool()), "which does not fit"),
        (Prompt(NONE.long(), NONE, only(size=4)), "no allowed token"),
        (Prompt(NONE.long(), NONE, only(SYMBOLS, size=4)), "no allowed token"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt, sentence):
    with pytest.raises(UserError, match=sentence):
        check_prompt(prompt, (2, 3), absorbing())


def test_places_that_are_given_may_allow_nothing():
    prompt = Prompt(NONE.long(), ~NONE, only(size=4))
    check_prompt(prompt, (2, 3), absorbing())
