"""Five steps of every method in float64: the same on 1 to 4 ranks, for two micro-batches.

With two views where a method can use them. The batches have samples twice, and bias labels of
which some are rare.
"""

import itertools

import numpy as np
import pytest
import torch

from rebias_dist.methods.registry import METHODS
from tests.distributed.ranks import run_ranks

N, CLASSES, STEPS = 64, 5, 5
FIRST = ("rebias", "vanilla", "biased", "rubi", "learned_mixin")
OTHERS = sorted(METHODS.keys() - set(FIRST))
CASES = [
    *itertools.product(FIRST, ("adamp", "sgd"), (8, 16)),
    ("rebias without CE", "sgd", 8),
    *itertools.product(OTHERS, ("sgd",), (8, 16)),
    *itertools.product(("softcon", "biascon", "fairkl"), ("two views",), (8, 16)),
]
SAMPLES = 150
# Weights at which each part of an objective changes the gradients.
WEIGHTS = {
    "spectral_decoupling": {"coefficient": 0.1, "anneal_step": 3},
    "biascon": {"bias_balance": True},
    "end": {"disentangle_weight": 1.0, "entangle_weight": 1.0},
    "group_dro": {"weight_step": 0.5, "adjustment": 1.0},
}


class Judge:
    """An engine that finds every third sample misclassified."""

    def __init__(self, labels):
        self.labels = labels

    def predict(self, name):
        return self.labels + (torch.arange(len(self.labels)) % 3 == 0)

    def restart(self, name):
        pass


def training_set():
    from rebias_dist.methods.base import TrainingSet

    generator = torch.Generator().manual_seed(77)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    rare = torch.rand(SAMPLES, generator=generator) < 0.2
    bias = torch.where(rare, torch.randint(0, CLASSES, (SAMPLES,), generator=generator), labels)
    return TrainingSet(labels, bias, CLASSES, (3, 6, 6))


def _players(method: str, optimizer: str):
    from rebias_dist import methods, models
    from rebias_dist.config.schema import OptimizerConfig
    from rebias_dist.methods.options import options_class
    from rebias_dist.step.player import Player
    from rebias_dist.step.precision import Precision

    # rebias is the hardest: two g, each updated twice a step.
    name = method.split()[0]
    options = options_class(name)
    config = options(
        name=name,
        **({"n_g_update": 2} if method == "rebias" else {}),
        **({"update_g_cls": False} if "without" in method else {}),
        **({"lambda_f": 2.0} if "lambda_f" not in options.unused() else {}),
        **WEIGHTS.get(name, {}),
    )
    game = methods.build(config)
    names = ["f"] * game.facts.has_f + ["g0", "g1"] * game.facts.has_g
    if method != "rebias" and "g1" in names:
        names.remove("g1")
    precision = Precision("float64", torch.device("cpu"))
    players = {}
    for index, name in enumerate(names):
        torch.manual_seed(index)
        network = models.build(
            "simple_convnet", num_classes=CLASSES, width=0.25, dropout=0.3,
            kernel_size=3 if name == "f" else 1,
        ).double()  # fmt: skip
        torch.manual_seed(9)
        heads = game.heads(32, [32] * (len(names) - 1), CLASSES) if name == "f" else None
        players[name] = Player(
            name,
            network,
            heads=None if heads is None else heads.double(),
            optimizer=OptimizerConfig(
                name="sgd" if optimizer == "two views" else optimizer, clip_norm=5.0
            ),
            precision=precision,
            unused=name != "f" and not config.update_g_cls,
        )
    training = training_set()
    game.prepare(training, {name: player.network for name, player in players.items()})
    game.before_epoch(0, Judge(training.labels))
    return game, players


def _run(method: str, optimizer: str, b: int) -> dict[str, np.ndarray]:
    import torch.distributed as dist

    from rebias_dist.data.batch import MicroBatch
    from rebias_dist.methods.radii import Radii
    from rebias_dist.step.minimax import Minimax
    from rebias_dist.step.player import Player

    rank, world = dist.get_rank(), dist.get_world_size()
    method_object, players = _players(method, optimizer)
    views = 2 if optimizer == "two views" else 1
    training = training_set()
    game = Minimax(
        method_object,
        players.get("f"),
        [player for name, player in players.items() if name != "f"],
        normalise=lambda images: images.double() / 255 - 0.5,
        global_batch=N,
        micro_batches=N // b,
        seed=3,
        views=views,
    )
    if method_object.facts.fixed_g:
        for g in game.gs:
            g.fix()
    found: dict[str, np.ndarray] = {}
    take_step = Player.take_step

    def record(self, micro_batches):
        update = len(found)
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                name = f"{self.name} update {update} gradient {number}"
                found[name] = parameter.grad.numpy().copy()
        return take_step(self, micro_batches)

    Player.take_step = record
    try:
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(0, 256, (N, views, 3, 6, 6), generator=generator)
            ids = torch.randint(0, SAMPLES, (N,), generator=generator)
            chunks = [t.chunk(N // b) for t in (training.labels[ids], training.bias[ids], ids)]
            # All first views, then all second ones.
            seen = [x.transpose(0, 1).flatten(0, 1).byte() for x in images.chunk(N // b)]
            mine = [
                MicroBatch(seen[j], *(chunk[j] for chunk in chunks), j)
                for j in range(rank, N // b, world)
            ]
            metrics = game.step(mine, step, Radii(0.7, (0.9, 1.1)[: len(game.gs)]))
            for name, value in metrics.reduce(N).items():
                found[f"{name} of step {step}"] = np.array([value])
    finally:
        Player.take_step = take_step
    for name, player in players.items():
        for module in (player.network, player.heads):
            for key, value in module.state_dict().items() if module is not None else ():
                found[f"{name}.{key} after"] = value.double().numpy().flatten()
    for key, value in method_object.state().items():
        found[f"state {key}"] = value.double().numpy().flatten()
    return found


def _run_all() -> list[dict[str, np.ndarray]]:
    return [_run(*case) for case in CASES]


# Three ranks share the four or eight micro-batches of a step unevenly.
WORLDS = [(1, 3), pytest.param((1, 2, 4), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def layouts(request):
    return {world: run_ranks(world, _run_all)[0] for world in request.param}


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, c)) for c in CASES])
def test_losses_gradients_weights_and_buffers(layouts, number):
    reference = layouts[1][number]
    assert len(reference) > 20
    worst = 0.0
    for world in layouts.keys() - {1}:
        other = layouts[world][number]
        assert other.keys() == reference.keys()
        for name, value in reference.items():
            difference = np.abs(other[name] - value).max()
            if difference > 0:
                worst = max(worst, float(difference / np.abs(value).max()))
    print(f"{CASES[number]}: {len(reference)} quantities, largest difference {worst:.1e}")
    assert worst <= 1e-10


def test_another_micro_batch_is_another_run(layouts):
    """A control: b is part of the run (BatchNorm sees it), W is not."""
    by_b = {b: layouts[1][CASES.index(("vanilla", "sgd", b))]["f/ce of step 4"][0] for b in (8, 16)}
    assert abs(by_b[8] - by_b[16]) > 1e-6
