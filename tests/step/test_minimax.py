"""The step of the game against a slow and obvious one, written from its definition."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rebias_dist import methods, models
from rebias_dist.config.schema import MethodConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.options import LearnedMixinOptions, options_class
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import hsic
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision

CPU = torch.device("cpu")
N, M, CLASSES = 24, 4, 5
RADII = Radii(0.7, (0.9,))
RADII_OF_TWO = Radii(0.7, (0.9, 1.3))
RATE = 0.3


def normalise(images):
    return images.to(torch.float64) / 255 - 0.5


def dense_hsic(x, y, sigma_x, sigma_y):
    """HSIC₁ from whole kernel matrices (Song et al. 2012, equation 5), by autograd."""
    n = len(x)
    off = 1 - torch.eye(n, dtype=x.dtype)

    def kernel(a, sigma):
        squared = ((a[:, None] - a[None]) ** 2).sum(-1)
        return torch.exp(-squared / (2 * sigma**2)) * off

    k, l = kernel(x, sigma_x), kernel(y, sigma_y)  # noqa: E741
    traces = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (traces - 2 / (n - 2) * (k.sum(1) @ l.sum(1))) / (n * (n - 3))


def network(kernel_size: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(
        "simple_convnet", num_classes=CLASSES, kernel_size=kernel_size, width=0.25
    ).double()


def micro_batches(seed: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(seed)
    b = N // M
    images = torch.randint(0, 256, (N, 3, 6, 6), generator=generator).to(torch.uint8)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    ids = torch.arange(N)
    return [
        MicroBatch(*(t[j * b : (j + 1) * b] for t in (images, labels, labels, ids)), j)
        for j in range(M)
    ]


def player(name: str, net: nn.Module, heads: nn.Module | None = None, **options) -> Player:
    optimizer = OptimizerConfig(name="sgd", momentum=0.0, lr=RATE, weight_decay=0.0, **options)
    return Player(name, net, heads=heads, optimizer=optimizer, precision=Precision("float64", CPU))


def game(config: MethodConfig, f: nn.Module, gs: list[nn.Module], heads=None) -> Minimax:
    return Minimax(
        methods.build(config),
        player("f", f, heads),
        [player(f"g{i}", g) for i, g in enumerate(gs)],
        normalise=normalise,
        global_batch=N,
        micro_batches=M,
        seed=0,
    )


def outputs(net: nn.Module, batches: list[MicroBatch]):
    """Outputs on the whole batch with one graph, statistics per micro-batch."""
    found = [net(normalise(batch.images)) for batch in batches]
    return torch.cat([o[0] for o in found]), torch.cat([o[1] for o in found])


def frozen_outputs(net: nn.Module, batches: list[MicroBatch]):
    with torch.no_grad():
        return outputs(copy.deepcopy(net), batches)


def buffers_after(net: nn.Module, batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    """The mean, over the micro-batches, of what each makes of the buffers as they are."""
    made = []
    for batch in batches:
        one = copy.deepcopy(net)
        one(normalise(batch.images))
        made.append(dict(one.named_buffers()))
    return {
        name: torch.stack([buffers[name].double() for buffers in made]).mean(0) for name in made[0]
    }


def reference_step(config, radii: Radii, f: nn.Module, gs: list[nn.Module], batches) -> None:
    """ReBias (eq. 5) on the whole global batch, all graphs kept."""
    labels = torch.cat([batch.labels for batch in batches])
    f_features = frozen_outputs(f, batches)[1]
    for g, sigma in zip(gs, radii.g, strict=True):
        for _ in range(config.n_g_update):
            after = buffers_after(g, batches)
            logits, features = outputs(g, batches)
            sigma_g, sigma_f = (sigma, radii.f)
            if config.swap_inner_bandwidth:
                sigma_g, sigma_f = sigma_f, sigma_g
            loss = -config.lambda_g * dense_hsic(features, f_features, sigma_g, sigma_f)
            if config.update_g_cls:
                loss = loss + cross_entropy(logits, labels)
            _apply(g, loss, after)
    after = buffers_after(f, batches)
    logits, features = outputs(f, batches)
    loss = cross_entropy(logits, labels)
    for g, sigma in zip(gs, radii.g, strict=True):
        opponent = frozen_outputs(g, batches)[1]
        loss = loss + config.lambda_f * dense_hsic(features, opponent, radii.f, sigma)
    _apply(f, loss, after)


def _apply(net: nn.Module, loss: torch.Tensor, after: dict[str, torch.Tensor]) -> None:
    parameters = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= RATE * gradient
        for name, buffer in net.named_buffers():
            buffer.copy_(after[name])


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    worst = 0.0
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        scale = max(float(y.double().abs().max()), 1e-12)
        difference = float((x.double() - y.double()).abs().max()) / scale
        assert not math.isnan(difference), name
        worst = max(worst, difference)
    return worst


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (MethodConfig(), 1),
        (MethodConfig(lambda_f=3.0, lambda_g=0.5), 2),
        (MethodConfig(n_g_update=2), 1),
        (MethodConfig(swap_inner_bandwidth=True), 1),
        (MethodConfig(update_g_cls=False), 1),
        (MethodConfig(lambda_f=0.0), 1),
        (MethodConfig(lambda_g=0.0), 1),
    ],
)
def test_steps_equal_those_of_the_whole_batch(config, count):
    f, gs = network(3, 0), [network(1, 1 + i) for i in range(count)]
    f_slow, gs_slow = copy.deepcopy(f), copy.deepcopy(gs)
    played = game(config, f, gs)
    radii = RADII if count == 1 else RADII_OF_TWO
    for step in range(3):
        batches = micro_batches(step)
        played.step(batches, step, radii)
        reference_step(config, radii, f_slow, gs_slow, batches)
    worst = max(largest_difference(a, b) for a, b in zip([f, *gs], [f_slow, *gs_slow], strict=True))
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-10


def test_rubi_and_learned_mixin_equal_their_formulas():
    for name in ("rubi", "learned_mixin"):
        config = options_class(name)(name=name, lambda_f=0.7, g_pretrain_epochs=1)
        f, g = network(3, 0), network(1, 1)
        torch.manual_seed(5)
        heads = methods.build(config).heads(32, [32], CLASSES).double()
        f_slow, g_slow, heads_slow = (copy.deepcopy(m) for m in (f, g, heads))
        played = game(config, f, [g], heads)
        batches = micro_batches(0)
        labels = torch.cat([batch.labels for batch in batches])
        if name == "learned_mixin":
            played.gs[0].fix()
        played.step(batches, 0, None)

        after = buffers_after(f_slow, batches)
        if name == "rubi":
            g_after = buffers_after(g_slow, batches)
            _apply(g_slow, cross_entropy(outputs(g_slow, batches)[0], labels), g_after)
            g_features = frozen_outputs(g_slow, batches)[1]
            logits, _ = outputs(f_slow, batches)
            c = heads_slow.c[0](g_features)
            loss = cross_entropy(logits * torch.sigmoid(c), labels) + cross_entropy(c, labels)
        else:
            g_slow.eval()
            g_logits, _ = frozen_outputs(g_slow, batches)
            logits, features = outputs(f_slow, batches)
            scaled = nn.functional.softplus(heads_slow.gate[0](features)) * g_logits
            share = torch.softmax(scaled, 1)
            entropy = -(share * share.log()).sum(1).mean()
            loss = cross_entropy(logits + scaled, labels) + 0.36 * entropy
        both = nn.ModuleList([f_slow, heads_slow])
        _apply(both, 0.7 * loss, {f"0.{key}": value for key, value in after.items()})
        for a, b in ((f, f_slow), (g, g_slow), (heads, heads_slow)):
            assert largest_difference(a, b) < 1e-10, name


def test_an_update_leaves_nothing_on_the_other_network():
    f, g = network(3, 0), network(1, 1)
    played = game(MethodConfig(), f, [g])
    seen = []
    take_step = Player.take_step

    def spy(self, micro_batches):
        other = played.f if self.name == "g0" else played.gs[0]
        seen.append((self.name, [p.grad for p in other.parameters if p.grad is not None]))
        return take_step(self, micro_batches)

    Player.take_step = spy
    try:
        played.step(micro_batches(0), 0, RADII)
    finally:
        Player.take_step = take_step
    assert seen == [("g0", []), ("f", [])]


def test_a_fixed_g_keeps_every_bit():
    config = LearnedMixinOptions()
    f, g = network(3, 0), network(1, 1)
    played = game(config, f, [g], methods.build(config).heads(32, [32], CLASSES).double())
    played.gs[0].fix()
    before = copy.deepcopy(g.state_dict())
    played.step(micro_batches(0), 0, None)
    assert all(torch.equal(before[key], value) for key, value in g.state_dict().items())


def test_losses_are_those_of_the_global_batch():
    f, g = network(3, 0), network(1, 1)
    f_slow, g_slow = copy.deepcopy(f), copy.deepcopy(g)
    batches = micro_batches(0)
    found = game(MethodConfig(lambda_f=2.0), f, [g]).step(batches, 0, RADII).reduce(N)
    labels = torch.cat([batch.labels for batch in batches])
    logits, features = frozen_outputs(g_slow, batches)
    ce, h = (
        cross_entropy(logits, labels),
        dense_hsic(features, frozen_outputs(f_slow, batches)[1], RADII.g[0], RADII.f),
    )
    assert found["g0/ce"] == pytest.approx(float(ce), rel=1e-10)
    assert found["g0/loss"] == pytest.approx(float(ce - h), rel=1e-10)
    assert found["g0/accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert found["f/loss"] == pytest.approx(found["f/ce"] + 2 * found["f/hsic_g0"], rel=1e-12)


def test_pretraining_moves_only_who_pretrains():
    f, g = network(3, 0), network(1, 1)
    before = copy.deepcopy(f.state_dict())
    played = game(MethodConfig(), f, [g])
    found = played.pretrain(micro_batches(0), 0, train_f=False, train_g=True).reduce(N)
    assert set(found) == {"g0/ce", "g0/loss", "g0/accuracy", "g0/grad_norm"}
    assert all(torch.equal(before[key], value) for key, value in f.state_dict().items())


def test_dropout_is_shared_by_the_passes_of_an_update_and_not_by_the_networks():
    """A first and a second pass with other masks would give a gradient that is of neither."""
    torch.manual_seed(0)
    build = lambda k: models.build(  # noqa: E731
        "simple_convnet", num_classes=CLASSES, kernel_size=k, width=0.25, dropout=0.5,
        feature="logits",
    ).double()  # fmt: skip
    f, g = build(1), build(1)
    g.load_state_dict(f.state_dict())
    played = game(MethodConfig(), f, [g])
    batches = micro_batches(0)
    first = played.first_pass(played.f, batches, 0, 0)
    again = played.first_pass(played.f, batches, 0, 0)
    other = played.first_pass(played.gs[0], batches, 0, 0)
    later = played.first_pass(played.f, batches, 1, 0)
    for a, b, c, d in zip(first, again, other, later, strict=True):
        assert torch.equal(a.features, b.features)
        assert not torch.allclose(a.features, c.features)
        assert not torch.allclose(a.features, d.features)


class _Live:
    """Bytes that autograd keeps for the backward pass: now, and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        return _Kept(tensor, self)


class _Kept:
    def __init__(self, tensor, live):
        self.tensor, self.live = tensor, live
        self.size = tensor.numel() * tensor.element_size()
        live.now += self.size
        live.most = max(live.most, live.now)

    def __del__(self):
        self.live.now -= self.size


def most_kept(function) -> int:
    live = _Live()
    with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda kept: kept.tensor):
        function()
    return live.most


def test_memory_of_the_graphs_does_not_grow_with_accumulation():
    def kept(parts: int, whole: bool) -> int:
        b, side = 4, 12
        images = torch.randint(0, 256, (parts * b, 3, side, side)).to(torch.uint8)
        labels = torch.randint(0, CLASSES, (parts * b,))
        chunks = [t.chunk(parts) for t in (images, labels, labels, labels)]
        batches = [MicroBatch(*(chunk[j] for chunk in chunks), j) for j in range(parts)]
        f, g = network(3, 0), network(1, 1)
        if whole:
            return most_kept(lambda: reference_step(MethodConfig(), RADII, f, [g], batches))
        play = game(MethodConfig(), f, [g])
        play.N, play.M, play.counts = parts * b, parts, [parts * b]
        return most_kept(lambda: play.step(batches, 0, RADII))

    few, many = (kept(parts, whole=False) for parts in (2, 16))
    control = [kept(parts, whole=True) for parts in (2, 16)]
    print(f"16 micro-batches instead of 2: {many / few:.2f} times the memory of the graphs, "
          f"{control[1] / control[0]:.2f} times with all graphs kept")  # fmt: skip
    # The features of the global batch are all that may grow.
    features = 16 * 4 * 32 * 8
    assert many <= few + 8 * features
    assert control[1] > 6 * control[0]


def test_beside_compiled_networks():
    """Networks behind torch.compile, under autocast or not: HSIC is what it is without."""
    f, g = network(3, 0).float(), network(1, 1).float()
    images = normalise(micro_batches(0)[0].images).float()
    for half in (False, True):
        found = []
        for wrap in (lambda net: net, lambda net: torch.compile(net, backend="aot_eager")):
            torch.compiler.reset()
            one, other = (wrap(copy.deepcopy(net)) for net in (f, g))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                x, y = one(images)[1], other(images)[1]
                value = hsic(x, y, RADII.f, RADII.g[0])
            value.backward()
            gradient = next(iter(one.parameters())).grad
            found.append((value.item(), gradient))
        (plain, expected), (compiled, gradient) = found
        assert compiled == pytest.approx(plain, rel=1e-4)
        torch.testing.assert_close(gradient, expected, rtol=2e-2 if half else 1e-4, atol=1e-6)
