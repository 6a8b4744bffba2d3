"""A step on a GPU, without a GPU: with tensors that have no data, but a shape and a device.

An operation on tensors of two devices, or one that needs a value on the host, fails on them. Where
there is no CUDA, autograd refuses such tensors, so gradients are zeros here; autocast and the
scaler of fp16 do nothing. tests/gpu takes the same steps on a GPU.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from data_shards.format.manifest import Normalize
from rebias_dist import methods, models
from rebias_dist.config.schema import NetworkConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.data.normalisation import Normalise
from rebias_dist.methods.base import Method, TrainingSet
from rebias_dist.methods.options import options_class
from rebias_dist.methods.radii import Radii
from rebias_dist.methods.registry import METHODS
from rebias_dist.methods.spectral_decoupling import class_weights
from rebias_dist.step import metrics, minimax, observing, player, verdicts
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14") and not torch.cuda.is_available(),
    reason="older versions of torch start CUDA for fake tensors too",
)

# These run a network before the first step.
OTHERS = {"badd", "fairkl"}
CLASSES, SAMPLES, N, SIDE = 4, 60, 8, 16
GPU = torch.device("cuda", 0)
PIXELS = Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


class Copies(TorchDispatchMode):
    """Notes what is copied between host and device while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if func._schema.name == "aten::copy_" else args[0]
            waits = not kwargs.get("non_blocking", False)
            if waits and source.device.type != made.device.type:
                self.found.append(f"{func._schema.name} {tuple(source.shape)}")
        return made


def without_autograd(player: Player, loss: torch.Tensor) -> None:
    assert loss.device == GPU
    assert loss.requires_grad
    for parameter in player.parameters:
        parameter.grad = torch.zeros_like(parameter)


def zeros(value, inputs, **options) -> tuple[torch.Tensor, ...]:
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    return tuple(torch.zeros_like(rows) for rows in inputs)


@pytest.fixture
def reads(monkeypatch):
    """A fake GPU; the shapes of what is read from it, and the GPU where all its work is awaited."""
    found: list[tuple[int, ...] | torch.device] = []

    def read(values: torch.Tensor) -> np.ndarray:
        found.append(tuple(values.shape))
        return np.ones(values.shape)

    class Copy:
        def __init__(self, values: torch.Tensor) -> None:
            self.wait = lambda: read(values)

    for module in (metrics, observing, player):
        monkeypatch.setattr(module, "to_host", read)
    monkeypatch.setattr(verdicts, "HostCopy", Copy)
    monkeypatch.setattr(verdicts, "wait_for", found.append)
    monkeypatch.setattr(Player, "backward", without_autograd)
    monkeypatch.setattr(torch.autograd, "grad", zeros)
    monkeypatch.setattr(minimax, "keyed", lambda *key: nullcontext())  # needs CUDA's generators
    with FakeTensorMode():
        yield found


def fake(values: torch.Tensor) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=GPU)


def prepare(method: Method, networks: dict[str, torch.nn.Module]) -> None:
    """Show the method a training set; some read labels, which a fake GPU does not have."""
    with unset_fake_temporarily():
        labels = torch.arange(SAMPLES) % CLASSES
        bias = torch.arange(SAMPLES) // CLASSES % CLASSES
    on_gpu = TrainingSet(fake(labels), fake(bias), CLASSES, (3, SIDE, SIDE))
    try:
        method.prepare(on_gpu, networks)
    except (DataDependentOutputException, DynamicOutputShapeException):
        with unset_fake_temporarily():
            method.prepare(TrainingSet(labels, bias, CLASSES, (3, SIDE, SIDE)), networks)
        for name, value in list(vars(method).items()):
            if isinstance(value, torch.Tensor):
                setattr(method, name, fake(value))
            if isinstance(value, TrainingSet):
                setattr(method, name, on_gpu)


def game_of(
    name: str, *, parts=1, precision="float32", optimizer="adamp", skips=0, ema=None
) -> Minimax:
    """Return a game on the fake GPU."""
    chosen, facts = Precision(precision, GPU), METHODS[name]
    method = methods.build(options_class(name)(name=name))
    with torch.device(GPU):
        networks = {
            network: models.build("simple_convnet", num_classes=CLASSES, width=0.25, kernel_size=3)
            for network in ["f"] * facts.has_f + ["g0"] * facts.has_g
        }
    prepare(method, networks)
    widths = {name: models.feature_dim(net, (3, SIDE, SIDE)) for name, net in networks.items()}
    heads = None
    if facts.has_f:
        with torch.device(GPU):
            heads = method.heads(widths["f"], [w for n, w in widths.items() if n != "f"], CLASSES)
    players = {
        network: Player(
            network,
            module,
            heads=heads if network == "f" else None,
            optimizer=OptimizerConfig(name=optimizer, lr=0.1, weight_decay=1e-4),
            precision=chosen,
            skips=skips,
            own=NetworkConfig(ema=ema) if network == "f" else None,
        )
        for network, module in networks.items()
    }
    if name == "jtt":  # found once, before the second training
        method._weights = torch.empty(SAMPLES, dtype=torch.float64, device=GPU)
    if facts.fixed_g and "g0" in players:
        players["g0"].fix()
    return Minimax(
        method,
        players.get("f"),
        [player for name, player in players.items() if name != "f"],
        normalise=Normalise(PIXELS, GPU),
        global_batch=N,
        micro_batches=parts,
        seed=0,
        views=2 if facts.views else 1,
    )


def batches_of(parts: int, views: int) -> list[MicroBatch]:
    """Return a global batch that is on the fake GPU."""
    b = N // parts
    return [
        MicroBatch(
            torch.empty(views * b, 3, SIDE, SIDE, dtype=torch.uint8, device=GPU),
            *(torch.empty(b, dtype=torch.int64, device=GPU) for _ in range(3)),
            index,
            views=views,
        )
        for index in range(parts)
    ]


def steps(game: Minimax, reads: list) -> tuple[list, list]:
    """Take two steps; return what the second read and copied while the host waited."""
    batches = batches_of(game.M, game.views)
    radii = Radii(1.0, (1.0,))
    game.step(batches, 0, radii)  # makes the optimizers' state
    reads.clear()
    with Copies() as copies:
        game.step(batches, 1, radii)
    return list(reads), copies.found


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - OTHERS))
def test_one_read_a_step(name, parts, reads):
    """The gradients' norms of the step before; a method that observes reads once more."""
    game = game_of(name, parts=parts)
    found, copies = steps(game, reads)
    updates = (game.f is not None) + (0 if METHODS[name].fixed_g else len(game.gs))
    observes = [()] if game.method.observes else []
    assert found == [*observes, (updates,)]
    assert copies == []


def test_weights_of_classes_wait_for_nothing(reads):
    weights = class_weights(torch.empty(N, dtype=torch.int64, device=GPU))
    assert weights.shape == (N,)
    assert reads == []


def test_verdicts_wait_for_the_next_step(reads):
    game = game_of("rebias")
    for number, expected in enumerate([[], [(2,)], [(2,), (2,)]]):
        game.step(batches_of(1, 1), number, Radii(1.0, (1.0,)))
        assert reads == expected
    game.verdicts.settle()
    game.verdicts.settle()
    assert reads == [(2,), (2,), (2,), GPU, GPU]


@pytest.mark.parametrize("optimizer", ["adamp", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_every_precision_and_optimizer(precision, optimizer, reads):
    assert steps(game_of("rebias", precision=precision, optimizer=optimizer), reads) == ([(2,)], [])


def test_one_read_an_update_where_updates_may_be_skipped(reads):
    assert steps(game_of("rebias", skips=3), reads) == ([()] * 2, [])


class _Average:
    """AveragedModel for networks of :func:`game_of`, as fake tensors cannot be copied deeply."""

    def __init__(self, network: torch.nn.Module) -> None:
        with torch.device(GPU):
            self.module = models.build(
                "simple_convnet", num_classes=CLASSES, width=0.25, kernel_size=3
            )
        self.n_averaged = 0


def test_the_average_of_the_weights_waits_for_nothing(reads, monkeypatch):
    monkeypatch.setattr(player, "AveragedModel", _Average)
    assert steps(game_of("rebias", ema=0.9), reads) == ([(2,)], [])


def test_one_copy_for_all_metrics(reads):
    game = game_of("rebias")
    found = game.step(batches_of(1, 1), 0, Radii(1.0, (1.0,)))
    reads.clear()
    with Copies() as copies:
        values = found.reduce(N)
    assert reads == [(len(found.sums) + len(found.values),)]
    assert {"f/loss", "f/hsic_g0", "f/grad_norm", "g0/accuracy"} <= values.keys()
    assert copies.found == []


def test_what_would_wait_is_found(reads):
    """The control of these tests."""
    values = torch.empty(3, device=GPU)
    with Copies() as copies:
        torch.tensor([1.0, 2.0], device=GPU)
        values.cpu()
        values.to("cpu", non_blocking=True)
    assert len(copies.found) == 2
    with pytest.raises(DataDependentOutputException):
        bool(values.isfinite().all())
    with pytest.raises(RuntimeError, match="at least two devices"):
        values + torch.empty(3)
