"""Every sampler, grid, corrector, plan and order of `configs/` on every process: prompts, seeds,
calls, laws."""

import copy

import pytest
import torch

from dlm import UserError
from dlm.lab import Oracle, exact, pushed
from dlm.samplers import Auto, GridSampler, Prompt
from tests.conformance.registry import SYMBOLS, built, every, key, names, with_profile
from tests.toys import correlated_law, product_table

LAW = correlated_law(SYMBOLS)
SHAPE = (6, LAW.ndim)
PARTS = [
    *(f"sampler={name}" for name in names("sampler")),
    *(f"grid={name}" for name in names("grid")),
    *(f"corrector={name}" for name in names("corrector")),
    *(f"sampler=reveal plan={name}" for name in names("plan")),
    *(f"sampler=reveal order={name}" for name in names("order")),
]


def sampler_of(part, process, steps=5):
    """The sampler that a part makes with the defaults of the rest."""
    overrides = [f"sampler.steps={steps}", f"process={process}", *part.split()]
    for override in part.split():
        overrides += with_profile(*override.split("="))
    name = part.split()[0].removeprefix("sampler=") if part.startswith("sampler=") else "ancestral"
    return built("sampler", name, *overrides)


@pytest.fixture
def setting(part, process):
    """A sampler and an oracle; where it is not defined, its sentence is checked instead."""
    made, model = sampler_of(part, process), built("process", process)
    oracle = Oracle(LAW, model)
    if made.refusal(model) is not None:
        with pytest.raises(UserError, match=type(model).__name__):
            made(oracle, SHAPE, key=key())
        return None
    return made, oracle


@pytest.mark.parametrize("part", PARTS)
@every("process")
class TestEverySampler:
    def test_prompt_is_kept_at_every_step(self, setting):
        if setting is None:
            return
        sampler, oracle = setting
        frozen = torch.tensor([[False, True, False]]).expand(SHAPE)
        seen = []
        prompt = Prompt(torch.full(SHAPE, 2), frozen)
        sampler(oracle, SHAPE, key=key(), prompt=prompt, on_step=seen.append)
        assert seen
        assert all((step.state.tokens[frozen] == 2).all() for step in seen)
        assert [step.index for step in seen] == list(range(len(seen)))
        assert (seen[-1].alpha == 1).all()

    def test_a_sequence_depends_on_its_key_alone(self, setting):
        if setting is None:
            return
        sampler, oracle = setting
        whole = sampler(oracle, SHAPE, key=key())
        part = sampler(oracle, (2, LAW.ndim), key=key()[torch.tensor([5, 1])])
        assert torch.equal(part.tokens, whole.tokens[[5, 1]])
        assert torch.equal(part.calls, whole.calls[[5, 1]])

    def test_the_result_is_clean_and_the_budget_holds(self, setting):
        if setting is None:
            return
        sampler, oracle = setting
        samples = sampler(oracle, SHAPE, key=key())
        assert ((samples.tokens >= 0) & (samples.tokens < SYMBOLS)).all()
        assert (samples.calls >= 1).all()
        assert (samples.calls <= sampler.calls(LAW.ndim)).all()

    def test_allowed_tokens_are_obeyed(self, setting):
        if setting is None:
            return
        sampler, oracle = setting
        states = oracle.process.num_states
        allowed = torch.zeros(1, LAW.ndim, states, dtype=torch.bool)
        allowed[:, 0, 1] = allowed[:, 1] = allowed[:, 2, 0] = allowed[:, 2, 2] = True
        prompt = Prompt(torch.zeros(SHAPE).long(), torch.zeros(SHAPE).bool(), allowed)
        tokens = sampler(oracle, SHAPE, key=key(), prompt=prompt).tokens
        assert (tokens[:, 0] == 1).all()
        assert (tokens[:, 2] != 1).all()


@every("grid")
def test_grids_go_from_noise_to_data(grid):
    made = built("grid", grid, *with_profile("grid", grid))
    schedule = built("process", "absorbing").schedule
    for steps in (1, 2, 7, 1000):
        levels = made.levels(steps, schedule)
        assert levels.shape == (steps + 1,)
        assert levels[0] == 0
        assert levels[-1] == 1
        assert (levels.diff() >= 0).all()


@every("plan")
def test_plans_open_everything(plan):
    made = built("plan", plan, *with_profile("plan", plan))
    hidden = torch.tensor([9, 1, 0, 5, 9, 3])
    for steps in (1, 2, 4, 9, 20):
        sizes = made.sizes(hidden, steps, key=key(), total=9)
        assert sizes.shape == (6, steps)
        assert (sizes >= 0).all()
        assert torch.equal(sizes.sum(-1), hidden)
        full = hidden >= steps
        assert (sizes[full] > 0).all()
        levels = made.levels(sizes, key=key())
        assert ((levels >= 0) & (levels <= 1)).all()
        alone = made.sizes(hidden[3:4], steps, key=key()[torch.tensor([3])], total=9)
        assert torch.equal(alone[0], sizes[3])


@every("sampler")
@every("process")
def test_product_laws_are_exact_and_steps_help(sampler, process):
    """The law of the sampler, by pushing it through exactly."""
    model, small = built("process", process), correlated_law(SYMBOLS, length=2)

    def error(law, steps):
        overrides = [f"process={process}", f"sampler.steps={steps}"]
        made = copy.deepcopy(built("sampler", sampler, *overrides))
        if made.refusal(model) is not None:
            return None
        made = made.chosen(model) if isinstance(made, Auto) else made
        if isinstance(made, GridSampler):
            output = pushed.grid_law(made, Oracle(law, model), law.ndim)
        else:
            made.level = "exact"
            sizes = [(1.0, [1] * law.ndim if steps >= law.ndim else [law.ndim])]
            output = pushed.reveal_law(made, Oracle(law, model), law.ndim, sizes)
        return exact.total_variation(exact.embed(law, model), output).item()

    first = error(product_table(SYMBOLS, length=2), 1)
    if first is None:
        return
    assert first < 1e-12
    few, many = error(small, 1), error(small, 6)
    assert many < 0.7 * few
