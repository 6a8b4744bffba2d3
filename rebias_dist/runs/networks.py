"""The networks of a run, with their initial weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_shards.format.manifest import Normalize
from rebias_dist import models
from rebias_dist.config.schema import Config, NetworkConfig
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.methods.base import Method
from rebias_dist.models import Weights, load_state
from rebias_dist.runs import checkpoint
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed

WIDEST = 4096
"""Most features of a network: HSIC's distances lose their meaning in many dimensions."""
_GIVEN = {
    "name": "the name of a network is a field of its own",
    "num_classes": "the number of classes comes from the data",
}
"""What no option of a network can be, and why."""


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
        for option, reason in _GIVEN.items():
            if option in network.options:
                given = f"{_key(name)}.options.{option}: {network.options[option]!r}"
                raise ConfigError(f"{given}: {reason}; remove it")
        with keyed(torch.device("cpu"), config.seed, "init", name):
            try:
                built = models.build(network.name, num_classes=classes, **network.build_options())
                if network.freeze == "backbone":
                    models.freeze_backbone(built, classes)
                if network.sets_head:
                    models.last_layer(built, classes)
            except ConfigError as error:
                raise ConfigError(f"{_key(name)}: {error}") from None
            except RuntimeError as error:  # torch's, for a network beyond the memory
                reason = " ".join(str(error).split())
                raise ConfigError(
                    f"{_key(name)}: {network.name} cannot be built: {reason}; make it smaller"
                ) from error
        # Channels last: on a Xeon in bf16 2.1 times the speed for a BagNet, 1.3 for a ResNet, and
        # 1.2 for a simple_convnet (python -m benchmarks.memory_format). CUDA's kernels prefer it.
        built = built.to(memory_format=torch.channels_last)
        networks[name] = built.to(precision.device, precision.parameters)
    return networks


def network_config(config: Config, name: str) -> NetworkConfig:
    """Return the section of ``f``, ``g0`` …"""
    return config.f if name == "f" else config.g[int(name[1:])]


def _key(name: str) -> str:
    """Return the key of a network's section in the configuration."""
    return name.replace("g", "g.")


def check_features(
    config: Config,
    method: Method,
    networks: dict[str, nn.Module],
    shape: tuple[int, int, int],
) -> None:
    """Refuse networks whose features are too wide, or cannot be trained where they must be.

    Args:
        config: of the run.
        method: its coupled terms train the features.
        networks: by name.
        shape: of an image: channels, height, width.

    Raises:
        ConfigError: it names the network and the cure; or a network cannot take such an image.
    """
    for name, network in networks.items():
        own, key = network_config(config, name), _key(name)
        try:
            features = models.features_of(network, shape)
        except RebiasError:
            raise
        except Exception as error:  # a network may raise anything on images of another size
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{key}: {own.name} fails on images {list(shape)}: {reason}; set the size of "
                f"images in {key}.options, or crop them with data.augmentation and data.crop"
            ) from error
        # simple_convnet has its map before the pooling only by a choice that names it.
        if features.shape[1] > WIDEST and own.feature != "pre":
            raise ConfigError(
                f"{key}.feature: the features of {own.name} are {features.shape[1]:,} wide, and "
                f"at most {WIDEST:,} are taken; name a layer behind a pooling"
            )
        coupled = method.f_is_coupled if name == "f" else method.g_is_coupled
        if coupled and not features.requires_grad:
            raise ConfigError(
                f"{key}.freeze: {config.method.name} trains the features of {name}, which a frozen "
                "backbone does not allow; set freeze: none, or choose another method"
                if own.freeze == "backbone"
                else f"{key}: the features of {own.name} are detached from its weights, so "
                f"{config.method.name} cannot train them; return features that carry gradients"
            )


@dataclass(frozen=True)
class Initial:
    """The initial state of a network."""

    state: dict[str, Any]
    normalize: Normalize | None = None
    """Mean and deviation of the images that read weights were trained on, if known."""
    note: str = ""
    """What to tell of the weights."""


def initial_state(config: Config, name: str, classes: int) -> Initial:
    """Return the initial state of a network: drawn by the seed, or read where the section says.

    Args:
        config: of the run.
        name: ``f``, ``g0`` …
        classes: number of classes.

    Raises:
        ConfigError: the weights are missing, cannot be read, or are of another network.
        DataError: a checkpoint is damaged.
    """
    own, key = network_config(config, name), _key(name)
    network = build_networks(config, classes, Precision(config.precision, torch.device("cpu")))[
        name
    ]
    if own.checkpoint is not None:
        where = f"{key}.checkpoint"
        weights = _weights_of_run(own.checkpoint, "last", name, where)
        load_state(network, weights.state, where=f"{where} {own.checkpoint}")
        return Initial(network.state_dict(), weights.normalize)
    if not own.pretrained:
        return Initial(network.state_dict())
    where = f"{key}.pretrained"
    weights = _pretrained(own, name, where)
    source = f"{where} {own.pretrained}" if isinstance(own.pretrained, str) else where
    note = models.load_weights(network, weights.state, classes, source)
    return Initial(network.state_dict(), weights.normalize, note)


def _pretrained(own: NetworkConfig, name: str, where: str) -> Weights:
    if own.pretrained is True:
        with keyed(torch.device("cpu"), "published"):  # building draws weights
            return models.published_weights(own.name, own.options, where)
    source = str(own.pretrained)
    run, _, choice = source.rpartition(":")
    if choice in ("best", "last"):
        return _weights_of_run(run, choice, name, where)
    return models.weights_of_file(source, where)


def _weights_of_run(run: str, choice: str, name: str, where: str) -> Weights:
    """Return the weights of a run's network of the same name, or of its only one."""
    folder = RunFolder(Path(run)).checkpoints
    if not checkpoint.steps(folder):
        raise ConfigError(f"{where}: {run} is no run with a checkpoint")
    state = checkpoint.load_choice(folder, choice)
    players, seen = state["players"], state.get("input")
    if name not in players and len(players) > 1:
        raise ConfigError(f"{where}: {run} has no network {name}; it has {', '.join(players)}")
    found = players[name] if name in players else next(iter(players.values()))
    constants = Normalize(mean=tuple(seen["mean"]), std=tuple(seen["std"])) if seen else None
    return Weights(found["network"], constants)


def read_weights(
    config: Config, names: Iterable[str], classes: int
) -> tuple[dict[str, Initial], Normalize | None]:
    """Read the initial weights of all networks that do not draw them.

    Args:
        config: of the run.
        names: of its networks.
        classes: number of classes.

    Returns:
        The initial states by network; and how images are normalised for these weights, None if
        that is not known, so that the data decide.

    Raises:
        ConfigError: as :func:`initial_state`; or two networks need other images.
    """
    found = {
        name: initial_state(config, name, classes)
        for name in names
        if network_config(config, name).begins_elsewhere
    }
    known = {name: initial.normalize for name, initial in found.items() if initial.normalize}
    if not known:
        return found, None
    decides, wanted = next(iter(known.items()))
    for name, constants in known.items():
        if constants != wanted:
            raise ConfigError(
                f"{_key(name)}: its weights were trained on images of mean {constants.mean} and "
                f"deviation {constants.std}, those of {decides} on {wanted.mean} and "
                f"{wanted.std}; use weights that agree"
            )
    return found, wanted
