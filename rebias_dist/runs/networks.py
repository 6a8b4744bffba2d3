"""The networks of a run, with their initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebias_dist import models
from rebias_dist.config.schema import Config, NetworkConfig
from rebias_dist.errors import ConfigError
from rebias_dist.models import load_state
from rebias_dist.runs import checkpoint
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed


def build_networks(config: Config, classes: int, precision: Precision) -> dict[str, nn.Module]:
    """Build ``f``, ``g0``, ``g1`` … those that the method has.

    Initial weights are keyed by the seed and the network's name: they are alike on all
    ranks, and f's do not depend on the method or on the other networks.
    """
    wanted: dict[str, NetworkConfig] = {"f": config.f} if config.has_f else {}
    if config.has_g:
        wanted |= {f"g{index}": g for index, g in enumerate(config.g)}
    networks = {}
    for name, network in wanted.items():
        with keyed(torch.device("cpu"), config.seed, "init", name):
            try:
                built = models.build(network.name, num_classes=classes, **network.build_options())
            except ConfigError as error:
                raise ConfigError(f"{name.replace('g', 'g.')}: {error}") from None
        # Channels last: on a CPU 1.4 times the speed for a BagNet, 1.1 for a ResNet, 1 for a
        # simple_convnet (python -m benchmarks.memory_format), and what CUDA's kernels prefer.
        built = built.to(memory_format=torch.channels_last)
        networks[name] = built.to(precision.device, precision.parameters)
    return networks


def network_config(config: Config, name: str) -> NetworkConfig:
    """Return the section of ``f``, ``g0`` …"""
    return config.f if name == "f" else config.g[int(name[1:])]


def initial_state(config: Config, name: str, classes: int) -> dict[str, Any]:
    """Return the initial state of a network: keyed by the seed, or that of its ``checkpoint``.

    Args:
        config: of the run.
        name: ``f``, ``g0`` …
        classes: number of classes.

    Raises:
        ConfigError: the checkpoint is missing or of another network.
    """
    network = network_config(config, name)
    built = build_networks(config, classes, Precision(config.precision, torch.device("cpu")))[name]
    if network.checkpoint is not None:
        load_from_run(built, Path(network.checkpoint), name)
    return built.state_dict()


def load_from_run(network: nn.Module, run: Path, name: str) -> None:
    """Give a network the weights of a run's last checkpoint.

    Args:
        network: to be changed.
        run: folder of the run.
        name: of the network here; the run's network of this name is taken if it has one, else its
            only one.

    Raises:
        ConfigError: there is no such run or network, or its parameters are others.
        DataError: the checkpoint is damaged.
    """
    where = name.replace("g", "g.")
    folder = RunFolder(run).checkpoints
    steps = checkpoint.steps(folder)
    if not steps:
        raise ConfigError(f"{where}.checkpoint: {run} is no run with a checkpoint")
    players = checkpoint.load(folder, steps[-1])["players"]
    if name not in players and len(players) > 1:
        raise ConfigError(
            f"{where}.checkpoint: {run} has no network {name}; it has {', '.join(players)}"
        )
    found = players[name] if name in players else next(iter(players.values()))
    load_state(network, found["network"], where=f"{where}.checkpoint {run}")
