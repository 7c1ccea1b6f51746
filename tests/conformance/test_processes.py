"""Every process of configs/process on every schedule of configs/schedule keeps its promises.

Its conversions, reverse step, thinning and bound against the dense reference, on a law small enough
to enumerate; its forward draws against its channel.
"""

import pytest
import torch

from dlm import Prediction
from dlm.lab import exact
from tests.conformance.registry import SYMBOLS, built, every, key
from tests.toys import correlated_law, double, everywhere, some_noise

LAW = correlated_law(SYMBOLS)


@pytest.fixture
def setting(process, schedule):
    made = built("process", process, f"schedule={schedule}")
    t, s = made.schedule.inverse(double([0.4, 0.7]))
    return made, t, s, *everywhere(made, LAW, t)


@every("process")
@every("schedule")
class TestEveryProcess:
    def test_denoiser_follows_bayes(self, setting):
        process, t, _, states, prediction, reachable = setting
        clean = exact.all_states(SYMBOLS, LAW.ndim)
        given = exact.rows_of(exact.channel(process, t, some_noise(process, LAW.ndim)), clean)
        place = torch.arange(LAW.ndim)
        chance = given[torch.arange(len(clean))[None, :, None], place, states.tokens[:, None]]
        weights = chance.prod(-1)
        onehot = torch.nn.functional.one_hot(clean, process.num_states).double()
        joint = torch.einsum("nx,xlk->nlk", weights * LAW.flatten(), onehot)
        expected = joint / joint.sum(-1, keepdim=True)
        assert torch.allclose(
            prediction.log_denoiser.exp()[reachable], expected[reachable], atol=1e-12
        )

    def test_conversions_undo_each_other(self, setting):
        process, _, _, states, prediction, _ = setting
        active = process.active(states)
        for currency in ("log_denoiser", "log_ratios"):
            made = {currency: getattr(prediction, currency)}
            other = Prediction(process, states, prediction.t, **made)
            assert torch.allclose(
                other.log_loo.exp()[active], prediction.log_loo.exp()[active], atol=1e-12
            )

    def test_reverse_step_and_thinning_follow_bayes(self, setting):
        process, t, s, states, prediction, reachable = setting
        noise = some_noise(process, LAW.ndim)
        kernel = exact.transition(process, s, t, noise)
        forward = exact.product_law(exact.rows_of(kernel, states.tokens))
        joint = exact.noised_law(LAW, process, s, noise)[:, None] * forward
        reverse = (joint / joint.sum(0)).T[reachable]
        table = reverse.reshape(-1, *[process.num_states] * LAW.ndim)
        bound = process.move_bound(states, t, s)[..., None]
        stays = torch.nn.functional.one_hot(states.tokens, process.num_states).double()
        mixed = (1 - bound) * stays + bound * process.moved(prediction, s).exp()
        mixed = torch.where(process.active(states)[..., None], mixed, stays)[reachable]
        posterior = process.posterior(prediction, s).exp()[reachable]
        for i in range(LAW.ndim):
            expected = table.sum([1 + j for j in range(LAW.ndim) if j != i])
            assert torch.allclose(posterior[:, i], expected, atol=1e-12)
            assert torch.allclose(mixed[:, i], expected, atol=1e-12)

    def test_bound_integrand_is_the_rate_of_kl(self, setting):
        process, t, _, states, prediction, _ = setting
        for x0 in exact.all_states(SYMBOLS, LAW.ndim)[::4]:
            clean = x0.expand_as(states.tokens)
            given = exact.rows_of(exact.channel(process, t, some_noise(process, LAW.ndim)), clean)
            possible = given.gather(-1, states.tokens[..., None]).squeeze(-1) > 0
            expected = exact.bound_integrand(process, prediction.log_loo.exp(), clean, states, t)
            actual = process.nelbo(prediction, clean)
            assert torch.allclose(actual[possible], expected[possible], rtol=1e-9, atol=1e-11)

    def test_forward_draws_follow_the_channel(self, setting):
        process, t, *_ = setting
        x0 = torch.arange(SYMBOLS).repeat_interleave(4000).expand(2, -1)
        z = process.corrupt(x0, t.expand(2, 1), key=key(2)).tokens
        expected = exact.channel(process, t)
        for v in range(SYMBOLS):
            counts = torch.bincount(z[x0 == v], minlength=process.num_states) / 8000
            assert torch.allclose(counts.double(), expected[v], atol=0.025)

    def test_draws_are_functions_of_the_key(self, setting):
        process, t, *_ = setting
        x0 = torch.zeros(6, 50, dtype=torch.int64)
        whole = process.corrupt(x0, t.expand(6, 1), key=key())
        part = process.corrupt(x0[:1], t.expand(1, 1), key=key()[torch.tensor([4])])
        assert torch.equal(whole.tokens[4], part.tokens[0])
        assert not torch.equal(whole.tokens[0], whole.tokens[1])

    def test_settings_make_equality_and_on_changes_the_schedule(self, process, schedule):
        made, again = (built("process", process, f"schedule={schedule}") for _ in range(2))
        assert made == again
        assert made.on(made.schedule) == made
        assert made.time_conditioned in (True, False)
