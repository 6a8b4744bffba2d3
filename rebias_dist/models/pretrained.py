"""Initial weights that others have trained: published ones, and those in a file.

Nothing is unpickled: files of torch.save are read with ``weights_only``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_shards.format.manifest import Normalize
from rebias_dist.errors import ArgumentError, ConfigError
from rebias_dist.models import timm_networks
from rebias_dist.models.last_layer import last_layer
from rebias_dist.models.named_layer import torchvision_names
from rebias_dist.models.public_checkpoint import load_state
from rebias_dist.models.untrusted import load_untrusted, refusal

# Built without their auxiliary classifiers, which only training from scratch needs.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# With its weights torchvision gives these networks a first step of their own, which turns the
# published constants into these. Ours have no such step.
_TRANSFORMING = ("googlenet", "inception_v3")
_HALF = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Weights:
    """A state dict and, if known, the mean and deviation of the images it was trained on."""

    state: dict[str, Tensor]
    normalize: Normalize | None = None


def published_weights(name: str, options: Mapping[str, Any], where: str) -> Weights:
    """Return torchvision's default weights of a network, or timm's, from their cache or download.

    Args:
        name: of the network.
        options: further arguments of its factory.
        where: opens the message of an error.

    Raises:
        ConfigError: nobody publishes weights for it, or they cannot be read.
    """
    ours = name.startswith(timm_networks.PREFIX)
    if not ours and name not in torchvision_names():
        raise ConfigError(
            f"{where}: true is for networks of torchvision and timm, not for {name}; give a file "
            "or a run"
        )
    try:
        with _without_pickles():
            return _of_timm(name, options) if ours else _of_torchvision(name)
    except Exception as error:  # two libraries and their downloads raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        cache = "Hugging Face's cache (HF_HOME)" if ours else f"{torch.hub.get_dir()}/checkpoints"
        raise ConfigError(
            f"{where}: the published weights of {name} cannot be loaded ({reason}); start once "
            f"with internet, fill {cache}, or give a file"
        ) from error


def _of_torchvision(name: str) -> Weights:
    published: Any = torchvision.models.get_model_weights(name).DEFAULT
    # By torchvision's own loader, which renames parameters of old files.
    network = torchvision.models.get_model(name, weights=published, progress=False)
    state = {key: x for key, x in network.state_dict().items() if not key.startswith(_AUXILIARY)}
    if name in _TRANSFORMING:
        return Weights(state, _HALF)
    seen = published.transforms()
    return Weights(state, Normalize(mean=tuple(seen.mean), std=tuple(seen.std)))


def _of_timm(name: str, options: Mapping[str, Any]) -> Weights:
    network: Any = timm_networks.create(name, pretrained=True, **options)
    seen = network.pretrained_cfg
    normalize = Normalize(mean=tuple(seen["mean"]), std=tuple(seen["std"]))
    return Weights(network.state_dict(), normalize)


@contextmanager
def _without_pickles() -> Iterator[None]:
    """Have torch.load refuse pickled code, also where torchvision does not ask for it."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def weights_of_file(path: str, where: str) -> Weights:
    """Return the state dict in a file, of safetensors (by its ending) or of torch.save.

    It may lie under ``state_dict`` or ``model``, and its names may begin with ``module.``.

    Args:
        path: of the file.
        where: opens the message of an error.

    Raises:
        ConfigError: the file is missing or damaged, or holds more than named tensors.
    """
    try:
        if path.endswith(".safetensors"):
            content: Any = load_file(path)
        else:
            with open(path, "rb") as file:
                content = load_untrusted(file)
    except OSError as error:
        raise ConfigError(
            f"{where}: {path} cannot be read: {error.strerror or error}; check the path"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise ConfigError(f"{where}: {path} is refused: {refusal(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ConfigError(
            f"{where}: {path} holds no state dict of named tensors; save network.state_dict()"
        )
    return Weights({name.removeprefix("module."): value for name, value in content.items()})


def load_weights(network: nn.Module, state: Mapping[str, Tensor], classes: int, where: str) -> str:
    """Load weights into a network whose last layer may have another number of classes.

    Args:
        network: changed in place; its last layer keeps its own weights if the others do not fit.
        state: tensors by name.
        classes: number of logits of the network.
        where: opens the message of an error.

    Returns:
        A text about the last layer if that was kept, else ''.

    Raises:
        ConfigError: any other parameter is missing, unknown or of another shape.
    """
    own = network.state_dict()
    try:
        last = f"{last_layer(network, classes)}."
    except ArgumentError:  # then all must fit
        last = "-"
    mine = {name: value for name, value in own.items() if name.startswith(last)}
    theirs = {name: value for name, value in state.items() if name.startswith(last)}
    if {n: x.shape for n, x in theirs.items()} == {n: x.shape for n, x in mine.items()}:
        load_state(network, state, where=where)
        return ""
    rest = {name: value for name, value in state.items() if name not in theirs}
    load_state(network, {**rest, **mine}, where=where)
    there = ", ".join(str(list(value.shape)) for value in theirs.values())
    return (
        f"the last layer, {last[:-1]}, stays new: it has {classes} classes, and the weights have "
        + (f"the shapes {there} there" if there else "no such layer")
    )
