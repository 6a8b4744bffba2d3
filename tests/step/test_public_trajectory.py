"""Whole steps of ReBias against those of the authors' public code, from the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebias_dist import methods, models
from rebias_dist.config.schema import MethodConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.radii import Radii
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision

RUNS = json.loads(Path(__file__).with_name("public_trajectory.json").read_text())["runs"]


def network(name: str, classes: int, rng: np.random.Generator) -> nn.Module:
    name, _, size = name.partition(" k=")
    options = {"kernel_size": int(size)} if size else {}
    net = models.build(name, num_classes=classes, **options).double()
    for key, parameter in net.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            values = np.full(shape, float(key.endswith("weight")))
        else:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        parameter.data = torch.from_numpy(values)
    return net


def differences(run, taken: int) -> tuple[dict[str, float], dict[str, float]]:
    """Relative differences of the losses of the first steps, and of the norms at the end.

    The norms have no biases of convolutions before a BatchNorm, which are frozen here.
    """
    rng = np.random.Generator(np.random.Philox(run["seed"]))
    nets = {
        name: network(kind, run["classes"], rng)
        for name, kind in zip("fg", run["networks"], strict=True)
    }
    for name, net in nets.items():
        shapes = [list(p.shape) for p in net.parameters()]
        assert shapes == run["parameter_shapes"][name]
    n, steps, side = run["global_batch"], run["steps"], run["image"]
    images = torch.from_numpy(rng.random((len(steps), n, 3, side, side)) * 2 - 1)
    labels = torch.from_numpy(rng.integers(0, run["classes"], (len(steps), n)))
    options = {key: run[key] for key in ("lr", "weight_decay")}
    optimizer = OptimizerConfig(name=run["optimizer"], **options)
    precision = Precision("float64", torch.device("cpu"))
    f, g = (
        Player(name, net, optimizer=optimizer, precision=precision)
        for name, net in zip(("f", "g0"), nets.values(), strict=True)
    )
    sigma_f, sigma_g = run["sigma"]
    game = Minimax(
        # The public code exchanges the radii in g's update.
        methods.build(MethodConfig(swap_inner_bandwidth=True)),
        f,
        [g],
        normalise=lambda images: images,
        global_batch=n,
        micro_batches=n // run["micro_batch"],
        seed=0,
    )
    losses: dict[str, float] = {}
    names = {"g_ce": "g0/ce", "g_hsic": "g0/hsic", "f_ce": "f/ce", "f_hsic": "f/hsic_g0"}
    ids = torch.arange(n)
    for step, expected in enumerate(steps[:taken]):
        batch = MicroBatch(images[step], labels[step], labels[step], ids, 0)
        found = game.step([batch], step, Radii(sigma_f, (sigma_g,))).reduce(n)
        for theirs, ours in names.items():
            losses[f"{theirs} of step {step}"] = abs(found[ours] / expected[theirs] - 1)
    norms: dict[str, float] = {}
    if taken < len(steps):
        return losses, norms
    for name, net in nets.items():
        matrices = [(key, p) for key, p in net.named_parameters() if p.ndim > 1]
        wanted = run["final_norms_of_matrices_and_kernels"][name]
        for (key, p), norm in zip(matrices, wanted, strict=True):
            norms[f"{name}.{key}"] = abs(float(p.detach().norm()) / norm - 1)
    return losses, norms


def name_of(run) -> str:
    return f"{run['networks'][0]} {run['optimizer']}"


def report(found: dict[str, float]) -> None:
    worst = max(found, key=found.get)
    print(f"largest difference {found[worst]:.1e}: {worst}")
    assert found[worst] < 1e-9


@pytest.mark.parametrize("run", [r for r in RUNS if r["optimizer"] == "adamp"], ids=name_of)
def test_first_steps_of_the_public_code(run):
    losses, _ = differences(run, 3)
    report(losses)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_all_steps_of_the_public_code(run):
    losses, norms = differences(run, len(run["steps"]))
    assert len(losses) == 4 * len(run["steps"])
    report(losses)
    report(norms)
