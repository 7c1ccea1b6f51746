"""Every sampler of configs/sampler on every process and grid: prompts, seeds, calls, law."""

import pytest
import torch

from dlm import UserError
from dlm.lab import Oracle, exact
from dlm.samplers import Prompt
from tests.conformance.registry import SYMBOLS, built, every, key
from tests.toys import correlated_law, double, product_table

LAW = correlated_law(SYMBOLS)
SHAPE = (6, LAW.ndim)


@pytest.fixture
def setting(sampler, process, grid):
    made = built("sampler", sampler, f"process={process}", f"grid={grid}", "sampler.steps=5")
    return defined(made, built("process", process)), Oracle(LAW, built("process", process))


def defined(sampler, process):
    """The sampler; where it is not defined for the process, its sentence is checked instead."""
    try:
        sampler.kernel.bound(process, process.prior((1, 2), key=key(1)), *double([0.9, 0.5]))
    except UserError as refusal:
        with pytest.raises(UserError, match=type(process).__name__):
            sampler(Oracle(LAW, process), SHAPE, key=key())
        pytest.skip(str(refusal))
    return sampler


@every("sampler")
@every("process")
@every("grid")
class TestEverySampler:
    def test_prompt_is_kept_at_every_step(self, setting):
        sampler, oracle = setting
        frozen = torch.tensor([[False, True, False]]).expand(SHAPE)
        seen = []
        sampler(
            oracle,
            SHAPE,
            key=key(),
            prompt=Prompt(torch.full(SHAPE, 2), frozen),
            on_step=lambda step, state: seen.append(state.tokens),
        )
        assert seen
        assert all((tokens[frozen] == 2).all() for tokens in seen)

    def test_a_sequence_depends_on_its_key_alone(self, setting):
        sampler, oracle = setting
        whole = sampler(oracle, SHAPE, key=key())
        part = sampler(oracle, (2, LAW.ndim), key=key()[torch.tensor([5, 1])])
        assert torch.equal(part.tokens, whole.tokens[[5, 1]])
        assert torch.equal(part.calls, whole.calls[[5, 1]])

    def test_the_result_is_clean_and_the_budget_holds(self, setting):
        sampler, oracle = setting
        samples = sampler(oracle, SHAPE, key=key())
        assert ((samples.tokens >= 0) & (samples.tokens < SYMBOLS)).all()
        assert (samples.calls >= 1).all()
        assert (samples.calls <= sampler.calls).all()


@every("grid")
def test_grids_go_from_noise_to_data(grid):
    made = built("grid", grid)
    for steps in (1, 2, 7, 1000):
        levels = made.levels(steps)
        assert levels.shape == (steps + 1,)
        assert levels[0] == 0
        assert levels[-1] == 1
        assert (levels.diff() > 0).all()


@every("sampler")
@every("process")
def test_product_laws_are_exact_and_steps_help(sampler, process):
    model = built("process", process)
    made = defined(built("sampler", sampler), model)

    def error(law, steps):
        times = model.schedule.inverse(made.grid.levels(steps))
        output = exact.output_law(Oracle(law, model), made.kernel, times, law.ndim)
        return exact.total_variation(exact.embed(law, model), output).item()

    assert error(product_table(SYMBOLS), 1) < 1e-12
    assert error(LAW, 32) < 0.6 * error(LAW, 16)
