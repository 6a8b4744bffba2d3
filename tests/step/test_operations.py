"""Ceilings for the operations of a step: on a GPU each is a launch, which small batches wait for.

Views and fresh memory, which cost no launch, are not counted.
"""

from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.step import CONVNETS, RADII, RESNET, batches_of, build_game
from rebias_dist import models
from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.objectives import hsic
from rebias_dist.step.batchnorm import RunningStatistics
from rebias_dist.step.player import make_optimizer
from tests.support.operations import Operations

CLASSES = 9


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    built = models.build(name, num_classes=CLASSES)
    return built.to(memory_format=torch.channels_last)


def test_batchnorm_buffers():
    """Of a step: f's pass with gradients, g's with and without, and both commits."""
    found = Operations()
    for name, without_gradient in (("resnet18", 0), ("bagnet18", 1)):
        statistics = RunningStatistics(network(name))
        with found:
            for _ in range(without_gradient):
                with statistics.protected():
                    pass
            with statistics.protected(collect=True):
                pass
            statistics.commit(1)
    print(found.total, found.by_name)
    assert found.total <= 20


def test_counters_are_hidden_in_a_pass():
    """A counter that the layers see costs an operation for each layer."""
    resnet, found = network("resnet18"), Operations()
    with RunningStatistics(resnet).protected(), torch.no_grad(), found:
        resnet(torch.zeros(2, 3, 64, 64))
    assert found.by_name["native_batch_norm"] == 20
    assert found.by_name["add_"] == 8  # the residual connections


@pytest.mark.parametrize(
    ("name", "ceiling"), [("adamp", 120), ("adam", 8), ("adamw", 8), ("sgd", 8)]
)
def test_optimizers(name, ceiling):
    """Of a step: those of both networks."""
    found = Operations()
    for of in ("resnet18", "bagnet18"):
        parameters = list(network(of).parameters())
        optimizer = make_optimizer(parameters, OptimizerConfig(name=name))
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()  # makes the state
        with found:
            optimizer.step()
    print(found.total, found.by_name)
    assert found.total <= ceiling


@pytest.mark.parametrize(("parts", "passes"), [(1, 1), (2, 5)])
def test_normalisation(parts, passes):
    """Once a step for one micro-batch; with more at each pass, which keeps the memory small."""
    game = build_game(CONVNETS, 8, parts)
    batches = batches_of(8, parts, 14)
    normalise, calls = game.normalise, Counter()

    def counted(images):
        calls[id(images)] += 1
        return normalise(images)

    game.normalise = counted
    game.step(batches, 0, RADII)
    assert list(calls.values()) == [passes] * parts


def test_step():
    """Networks, objectives, optimizers and buffers of a step of rebias."""
    game = build_game(RESNET, 8, 1)
    batches = batches_of(8, 1, 64)
    game.step(batches, 0, RADII)  # makes the state
    with Operations() as found:
        game.step(batches, 1, RADII)
    print(found.total, found.by_name)
    assert found.total <= 700


@pytest.mark.parametrize("rows", [8, 1024])
@pytest.mark.parametrize(("both", "ceiling"), [(False, 70), (True, 80)])
def test_hsic(rows, both, ceiling):
    """Value and gradients of a batch of one tile; in a step one side needs a gradient."""
    x, y = torch.randn(rows, 16, requires_grad=True), torch.randn(rows, 16, requires_grad=both)
    with Operations() as found:
        hsic(x, y, 4.0, 4.0, check=False).backward()
    print(found.total, found.by_name)
    assert found.total <= ceiling
