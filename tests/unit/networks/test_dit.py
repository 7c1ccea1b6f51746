"""The backbone: protocol, parity with a plain implementation, isolation, initialisation, cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from dlm.errors import UserError
from dlm.networks import DiT
from dlm.networks.layers import NORM_EPS

K, L, D, DEPTH, H = 11, 16, 32, 2, 2
PLAIN = {"mlp": "gelu", "norm": "layer", "qk_norm": False, "tied": False}


def build(*, perturbed: bool = True, **changes) -> DiT:
    """A small network; perturbed: no parameter is left at zero, so that everything is connected."""
    torch.manual_seed(0)
    sizes = {"num_states": K, "length": L, "width": D, "depth": DEPTH, "heads": H}
    network = DiT(**({"time_conditioning": False} | sizes | changes))
    if perturbed:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def inputs(network: DiT, rows: int = 3, length: int = L) -> dict[str, Tensor]:
    torch.manual_seed(1)
    given = {"tokens": torch.randint(K, (rows, length))}
    if network.time_conditioning:
        given["level"] = torch.linspace(-3, 3, rows)
    if network.num_classes:
        given["condition"] = torch.arange(rows) - 1
    return given


def reference(network: DiT, tokens: Tensor, level: Tensor | None = None) -> Tensor:
    """The same function for one sequence, position by position and head by head."""
    weights = dict(network.named_parameters())

    def norm(x: Tensor) -> Tensor:
        if network.norm.__name__ == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()

    def turned(x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        angle = position * 10_000.0 ** (-torch.arange(half) / half)
        z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), angle)
        return torch.cat((z.real, z.imag))

    def attention(x: Tensor, block: str) -> Tensor:
        parts = (x @ weights[f"{block}.attention.qkv.weight"].T).view(len(x), 3, H, -1)
        out = torch.empty(len(x), H, D // H, dtype=x.dtype)
        for head in range(H):
            q, k = parts[:, 0, head], parts[:, 1, head]
            if network.blocks[0].attention.qk_norm:
                q, k = (y / (y.square().mean(-1, keepdim=True) + NORM_EPS).sqrt() for y in (q, k))
            q, k = (torch.stack([turned(y[i], i) for i in range(len(x))]) for y in (q, k))
            out[:, head] = (q @ k.T / math.sqrt(D // H)).softmax(-1) @ parts[:, 2, head]
        return out.flatten(1) @ weights[f"{block}.attention.out.weight"].T

    def mlp(x: Tensor, block: str) -> Tensor:
        x = x @ weights[f"{block}.mlp.up.weight"].T
        if type(network.blocks[0].mlp).__name__ == "SwiGLU":
            x = F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :]
        else:
            x = F.gelu(x, approximate="tanh")
        return x @ weights[f"{block}.mlp.down.weight"].T

    modulation = torch.zeros(6 * DEPTH + 2, D)
    modulation[2 : 6 * DEPTH : 3] = 1.0
    if level is not None:
        modulation = network.modulation(network.level(level[None])).view(-1, D)
    x = weights.get("embedding.weight", weights["head.weight"])[tokens]
    for i in range(DEPTH):
        for branch, (shift, scale, gate) in zip(
            (attention, mlp), modulation[6 * i : 6 * i + 6].view(2, 3, D), strict=True
        ):
            x = x + gate * branch(norm(x) * (1 + scale) + shift, f"blocks.{i}")
    shift, scale = modulation[-2:]
    return norm(x) * (1 + scale) + shift


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, PLAIN, {"norm": "layer"}, {"mlp": "gelu"}, {"qk_norm": False}, {"tied": False}],
    ids=str,
)
def test_equals_a_plain_implementation(changes, time_conditioning):
    network = build(time_conditioning=time_conditioning, **changes).double()
    given = inputs(network)
    hidden = network(**given)
    assert hidden.shape == (3, L, D)
    for row in range(3):
        expected = reference(network, *(x[row] for x in given.values()))
        torch.testing.assert_close(hidden[row], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"norm": "layer"}, {"mlp": "gelu"}, {"qk_norm": False}, {"mlp_ratio": 8.0}, {"heads": 1}],
    ids=str,
)
def test_every_option_changes_the_function(changes):
    network, other = build(), build(**changes)
    tokens = inputs(network)["tokens"]
    assert not torch.allclose(network(tokens), other(tokens), atol=1e-3)


def test_dropout_acts_in_training_only_and_follows_the_global_seed():
    network = build(dropout=0.5)
    tokens = inputs(network)["tokens"]

    def draw() -> Tensor:
        torch.manual_seed(3)
        return network(tokens)

    assert torch.equal(draw(), draw())
    assert not torch.allclose(network(tokens), draw())
    network.eval()
    assert torch.equal(network(tokens), network(tokens))
    assert torch.equal(network(tokens), build()(tokens))


def test_rows_do_not_see_each_other_and_short_sequences_work():
    network = build(time_conditioning=True)
    given = inputs(network, length=9)
    together = network(**given)
    for row in range(3):
        alone = network(**{name: x[row : row + 1] for name, x in given.items()})
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_every_position_sees_every_other():
    network = build()
    tokens = inputs(network, rows=1)["tokens"]
    for position in (0, L - 1):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % K
        assert (network(changed) - network(tokens)).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("backend", ["auto", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@torch.no_grad()
def test_documents_and_padding_are_isolated(backend):
    network = build(attention=backend)
    tokens = inputs(network, rows=2)["tokens"]
    documents = torch.tensor([[0] * 5 + [1] * 7 + [-1] * 4, [0] * 16])
    before = network(tokens, documents=documents)
    for document in (0, 1, -1):
        inside = (documents == document) & torch.tensor([[True], [False]])
        after = network(torch.where(inside, (tokens + 1) % K, tokens), documents=documents)
        assert torch.equal(after[~inside], before[~inside])
        assert not torch.allclose(after[inside], before[inside], atol=1e-3)
    assert not torch.allclose(before[0], network(tokens)[0], atol=1e-3)
    torch.testing.assert_close(before[1], network(tokens)[1])


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("width", [64, 512])
def test_the_first_loss_is_log_k(width, tied, time_conditioning):
    states = 500
    changes = {"num_states": states, "width": width, "tied": tied}
    network = build(perturbed=False, time_conditioning=time_conditioning, **changes)
    torch.manual_seed(1)
    level = torch.zeros(16) if time_conditioning else None
    logits = network.head(network(torch.randint(states, (16, L)), level=level))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(states, (16 * L,)))
    assert loss.item() == pytest.approx(math.log(states), rel=0.06 if tied else 1e-6)


def test_blocks_start_as_the_identity_when_conditioned():
    network = build(perturbed=False, time_conditioning=True, norm="layer")
    given = inputs(network)
    embedded = F.embedding(given["tokens"], network.head.weight)
    torch.testing.assert_close(network(**given), F.layer_norm(embedded, (D,), eps=NORM_EPS))


@pytest.mark.parametrize("time_conditioning", [False, True])
class TestClasses:
    def test_a_row_sees_its_own_class_alone(self, time_conditioning):
        network = build(time_conditioning=time_conditioning, num_classes=2)
        given = inputs(network)
        given["tokens"] = given["tokens"][:1].expand(3, -1)
        if time_conditioning:
            given["level"] = torch.ones(3)
        together = network(**given)
        for i in range(3):
            alone = network(**{name: value[i : i + 1] for name, value in given.items()})
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
        gaps = [(together[i] - together[j]).abs().max() for i, j in ((0, 1), (1, 2), (0, 2))]
        assert min(gaps) > 1e-2

    def test_no_condition_is_the_class_of_none(self, time_conditioning):
        network = build(time_conditioning=time_conditioning, num_classes=2)
        given = inputs(network)
        none = given | {"condition": torch.full((3,), -1)}
        last = given | {"condition": torch.full((3,), 2)}
        missing = {name: value for name, value in given.items() if name != "condition"}
        assert torch.equal(network(**none), network(**missing))
        assert torch.equal(network(**none), network(**last))

    def test_without_classes_it_is_the_network_it_was(self, time_conditioning):
        plain = build(time_conditioning=time_conditioning)
        assert "classes" not in dict(plain.named_children())
        with pytest.raises(UserError, match="a network without classes; train with labelled"):
            plain(**inputs(plain), condition=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_every_parameter_gets_a_gradient(time_conditioning, num_classes, tied):
    network = build(time_conditioning=time_conditioning, num_classes=num_classes, tied=tied)
    network.head(network(**inputs(network))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("tied", [False, True])
def test_weights_survive_safetensors(tied, tmp_path):
    network, other = build(tied=tied), build(tied=tied, perturbed=False)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    tokens = inputs(network)["tokens"]
    assert torch.equal(network.head(network(tokens)), other.head(other(tokens)))


def test_meta_device_then_assigned_weights():
    network = build(time_conditioning=True)
    with torch.device("meta"):
        empty = build(time_conditioning=True, perturbed=False)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert empty.num_parameters == network.num_parameters
    empty.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(empty(**inputs(network)), network(**inputs(network)))


def gradients(network: DiT, autocast: bool = False) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = network(**inputs(network))
    torch.manual_seed(2)
    (hidden.float() * torch.randn(hidden.shape)).sum().backward()
    body = (p.grad for name, p in network.named_parameters() if name != "head.weight")
    return [hidden, *(g for g in body if g is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    changes = {"time_conditioning": True, "dropout": dropout}
    plain, checkpointed = build(**changes), build(**changes)
    checkpointed.checkpoint_activations()
    calls = []
    checkpointed.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(4)
    expected = gradients(plain)
    torch.manual_seed(4)
    for mine, theirs in zip(gradients(checkpointed), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert len(calls) == 2


def test_compiled_blocks_equal_eager_ones_and_share_one_compilation(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compile_module(m, backend=counter))
    eager, compiled = build(depth=12), build(depth=12)
    compiled.compile_blocks()
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for mine, theirs in zip(gradients(compiled), gradients(eager), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_inductor_equals_eager(time_conditioning):
    changes = {"time_conditioning": time_conditioning}
    eager, compiled = build(**changes), build(**changes)
    compiled.compile_blocks()
    for mine, theirs in zip(gradients(compiled), gradients(eager), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_bf16_autocast_stays_finite_and_near_fp32(time_conditioning):
    changes = {"time_conditioning": time_conditioning}
    exact, rounded = gradients(build(**changes)), gradients(build(**changes), autocast=True)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.isfinite().all()
        assert (mine - theirs).norm() < 0.05 * theirs.norm()


def test_published_model_in_numbers():
    """12 x 768, K = 50,258, L = 1,024: 854 MFLOP a trained token, 27 % of them in the head."""
    with torch.device("meta"):
        small = DiT(50_258, 1024, 768, 12, 12, time_conditioning=False, **PLAIN)
        timed = DiT(50_258, 1024, 768, 12, 12, time_conditioning=True, **PLAIN)
    head = 768 * 50_258
    assert small.num_parameters == 12 * 12 * 768**2 + 2 * head
    assert small.flops_per_token(1024) == pytest.approx(854e6, rel=1e-3)
    assert 6 * head / small.flops_per_token(1024) == pytest.approx(0.27, abs=0.005)
    assert small.flops_per_token(1024, training=False) * 3 == small.flops_per_token(1024)
    assert timed.flops_per_token(1024) == pytest.approx(small.flops_per_token(1024), rel=1e-3)
    assert timed.flops_per_token(1) > 1.05 * small.flops_per_token(1)


@pytest.mark.parametrize(("time_conditioning", "num_classes"), [(True, 0), (False, 2), (True, 2)])
def test_flops_are_those_that_torch_counts(time_conditioning, num_classes):
    network = build(time_conditioning=time_conditioning, num_classes=num_classes)
    # In bf16 on CPU attention is two matmuls; the counter knows no fp32 kernel of it.
    autocast = torch.autocast("cpu", torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), autocast:
        network.head(network(**inputs(network, rows=1)))
    assert counter.get_total_flops() == network.flops_per_token(L, training=False) * L


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"width": 34}, r"width must be a multiple of 2 \* heads = 4, got 34"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"mlp": "relu"}, "mlp must be one of gelu, swiglu, got 'relu'"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"norm": "batch"}, "norm must be one of rms, layer, got 'batch'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention": "best"}, "attention must be one of auto, sdpa, flash, flex, got 'best'"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(**changes)


def test_bad_inputs_are_one_sentence():
    network, timed = build(), build(time_conditioning=True)
    tokens = torch.zeros(1, L, dtype=torch.int64)
    with pytest.raises(UserError, match="17 tokens, the network was built for at most 16"):
        network(torch.zeros(1, L + 1, dtype=torch.int64))
    with pytest.raises(UserError, match="noise level was missing"):
        timed(tokens)
    with pytest.raises(UserError, match="noise level was given"):
        network(tokens, level=torch.zeros(1))


class TestNoiseTokens:
    """With noise_conditioning a token that equals its noise token is told from a clean one."""

    tokens = torch.tensor([[1, 2, 3, 4]])

    def test_at_the_start_a_noisy_token_is_a_blank_whatever_it_is(self):
        network = build(noise_conditioning=True, perturbed=False)
        other = torch.tensor([[1, 7, 3, 4]])
        first, second = (
            network(x, noise=torch.tensor([[0, x[0, 1], 0, 0]])) for x in (self.tokens, other)
        )
        assert torch.equal(first, second)
        clean = network(self.tokens, noise=torch.zeros_like(self.tokens))
        assert not torch.allclose(first, clean)

    def test_once_trained_it_glimpses_at_the_noisy_token(self):
        network = build(noise_conditioning=True)
        other = torch.tensor([[1, 7, 3, 4]])
        first, second = (
            network(x, noise=torch.tensor([[0, x[0, 1], 0, 0]])) for x in (self.tokens, other)
        )
        assert not torch.allclose(first, second)

    def test_where_tokens_differ_from_their_noise_it_is_the_plain_network(self):
        network, plain = build(noise_conditioning=True), build()
        plain.load_state_dict(
            {k: v for k, v in network.state_dict().items() if k not in ("blank", "glimpse")}
        )
        given = network(self.tokens, noise=torch.zeros_like(self.tokens))
        assert torch.equal(given, plain(self.tokens))

    def test_both_vectors_learn_from_the_first_step(self):
        network = build(noise_conditioning=True, perturbed=False)
        network(self.tokens, noise=self.tokens).pow(3).sum().backward()
        assert network.blank.grad.abs().max() > 0
        assert network.glimpse.grad.abs().max() > 0

    def test_noise_is_given_exactly_when_it_is_wanted(self):
        with pytest.raises(UserError, match="noise tokens were missing"):
            build(noise_conditioning=True)(self.tokens)
        with pytest.raises(UserError, match="noise tokens were given"):
            build()(self.tokens, noise=self.tokens)
