"""Parameters without a gradient, always or now and then: the same training on any layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rebias_dist.config.files import validate
from rebias_dist.config.schema import NetworkConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.base import Method, Term, wide
from rebias_dist.methods.options import MethodConfig
from rebias_dist.objectives import coupled
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks

N, CLASSES, STEPS = 12, 3, 4


class Fickle(nn.Module):
    """A layer that is never used, and one that only bright micro-batches use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.never, self.layer = nn.Linear(3, 3), nn.Linear(3, 6)
        self.sometimes = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, images):
        features = torch.tanh(self.layer(images.mean((2, 3))))
        if images.mean() > 0:
            features = features + self.sometimes(features)
        return self.fc(features), features


class Whimsical(Method):
    """Ignores its heads, or the logits, or both, by the step and by the micro-batch."""

    def heads(self, f_width, g_widths, classes):
        torch.manual_seed(1)
        return nn.Linear(f_width, classes)

    def f_terms(self, f, gs, batch, heads):
        if batch.step == 1:
            return {"size": f.features.square().sum(1)}
        losses = cross_entropy(wide(f.logits), batch.labels, reduction="none")
        if batch.step == 2 and batch.labels[0] != 1:
            losses = losses + cross_entropy(heads(f.features), batch.labels, reduction="none")
        return {"ce": losses}


class Coupled(Whimsical):
    """The same beside a term of the whole batch, so that gradients are cached."""

    def f_coupled(self, f, gs, batch):
        return [Term("spread", 0.1, coupled(lambda rows: rows.var(0).sum(), f))]


def _steps(method: type[Method], micro_batches: int, optimizer: str) -> dict:
    """The weights after some steps, and which parameters had a gradient in each update."""
    rank, world = _place()
    played = method(MethodConfig())
    network = Fickle().double()
    player = Player(
        "f",
        network,
        heads=played.heads(6, [], CLASSES).double(),
        optimizer=OptimizerConfig(name=optimizer, lr=0.1, weight_decay=0.3, clip_norm=5.0),
        precision=Precision("float64", torch.device("cpu")),
        unused=True,
        own=NetworkConfig(name="x:X"),
    )
    game = Minimax(
        played,
        player,
        [],
        normalise=lambda images: images.double() / 255 - 0.5,
        global_batch=N,
        micro_batches=micro_batches,
        seed=3,
    )
    known = dict(network.named_parameters()) | dict(player.heads.named_parameters("heads"))
    names = {id(parameter): name for name, parameter in known.items()}
    found, seen = {}, []
    step = player.optimizer.step

    def look():
        seen.append(sorted(names[id(p)] for p in player.parameters if p.grad is not None))
        step()

    player.optimizer.step = look
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(number)
        # The first micro-batch alone is bright, so that one rank alone uses that layer.
        images = torch.randint(0, 100, (N, 3, 4, 4), generator=generator)
        if number != 3:
            images[: N // micro_batches] += 100
        labels = torch.arange(N) % CLASSES
        labels[: N // micro_batches] = 1
        chunks = [t.chunk(micro_batches) for t in (images.byte(), labels, labels, labels)]
        mine = [
            MicroBatch(*(chunk[j] for chunk in chunks), j)
            for j in range(rank, micro_batches, world)
        ]
        game.step(mine, number, None)
    for module in player.modules:
        for name, value in module.state_dict().items():
            found[f"{type(module).__name__}.{name}"] = value.double().numpy().flatten()
    return {"seen": seen, "weights": found}


CASES = [
    (method, parts, optimizer)
    for method in (Whimsical, Coupled)
    for parts in (2, 3, 4)
    for optimizer in ("sgd", "adamp")
]


def _place() -> tuple[int, int]:
    dist = torch.distributed
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _all_cases() -> list[dict]:
    return [_steps(*case) for case in CASES if case[1] >= _place()[1]]


@pytest.fixture(scope="module")
def layouts():
    return {1: [_all_cases()]} | {world: run_ranks(world, _all_cases) for world in (2, 3)}


@pytest.mark.parametrize("world", [2, 3])
def test_they_stay_as_they_are_on_any_layout_and_the_others_train_alike(layouts, world):
    expected = [found for case, found in zip(CASES, layouts[1][0], strict=True) if case[1] >= world]
    for rank in layouts[world]:
        for found, alone in zip(rank, expected, strict=True):
            assert found["seen"] == alone["seen"]
            for name, value in alone["weights"].items():
                np.testing.assert_allclose(found["weights"][name], value, 1e-10, 1e-12, name)


def test_the_cases_are_those_that_they_should_be(layouts):
    for found in layouts[1][0]:
        assert not np.any(found["weights"]["Fickle.never.weight"] - _fresh("never.weight"))
        has = [{name.partition(".")[0] for name in names} for names in found["seen"]]
        assert has[0] == {"layer", "sometimes", "fc"}
        assert has[1] == {"layer", "sometimes"}
        assert has[2] == {"layer", "sometimes", "fc", "heads"}
        assert has[3] == {"layer", "fc"}


def _fresh(name: str) -> np.ndarray:
    return Fickle().double().state_dict()[name].numpy().flatten()


def _train(values: dict) -> None:
    main(validate(values))


def test_a_run_with_such_a_network_is_the_same_on_two_ranks(small_run):
    values = {
        **small_run,
        "f": {"name": "tests.models.networks:Pair"},
        "method": {"name": "vanilla"},
        "optimizer": {"name": "adamw", "weight_decay": 0.2},
        "evaluate": {"final": "none"},
        "max_steps": 5,
    }
    _train({**values, "name": "alone"})
    run_ranks(2, _train, {**values, "name": "two"})
    alone, two = (
        load_choice(Path(values["runs_dir"], name, "checkpoints"), "last")["players"]["f"]
        for name in ("alone", "two")
    )
    for key, value in alone["network"].items():
        torch.testing.assert_close(two["network"][key], value, rtol=1e-9, atol=1e-12)
