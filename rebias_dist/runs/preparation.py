"""What a method is shown of the training data before the first step, and what it needs of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rebias_dist.config.schema import Config
from rebias_dist.data.sampling import draws_of
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.methods.base import Method, TrainingSet, checked_state


def check_labels(
    config: Config,
    labels: NDArray[np.integer],
    bias: NDArray[np.integer],
    classes: Sequence[str],
) -> None:
    """Check that the method and the sampling can use the labels of the training samples.

    Args:
        config: of the run.
        labels: ``[n]``
        bias: ``[n]``; -1: none.
        classes: names of the classes.

    Raises:
        ConfigError: a bias label that is needed is missing, or a class or group is empty.
    """
    draws_of(config.data, labels, bias, classes)
    without = int((bias < 0).sum())
    if config.facts.bias_labels and without:
        raise ConfigError(
            f"method.name: {config.method.name} needs bias labels, but {without:,} of the "
            f"{len(bias):,} training samples have none; make shards with bias labels, or choose "
            "another method"
        )
    pairs = np.unique(np.stack([labels, bias], axis=1), axis=0)
    one_each = len(pairs) == len(np.unique(labels))
    if config.facts.bias_labels and one_each and config.method.name != "group_dro":
        raise ConfigError(
            f"method.name: {config.method.name} finds one bias label in each class of the training "
            "data, so nothing tells the class from the bias; choose another method"
        )


def prepare_method(
    config: Config, method: Method, training: TrainingSet, networks: dict[str, nn.Module]
) -> None:
    """Let a method look at the training labels and the networks, and check its state.

    Raises:
        ConfigError: it cannot train on them, or it is a user's and fails.
    """
    if method.observes and config.data.views > 1:
        raise ConfigError(f"data.views: {config.method.name} observes samples; set it to 1")
    try:
        method.prepare(training, networks)
    except RebiasError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"method.name: {config.method.name}.prepare(): {reason}") from error
    checked_state(method)


def training_set(
    labels: NDArray[np.integer],
    bias: NDArray[np.integer],
    classes: int,
    shape: tuple[int, int, int],
    device: torch.device,
) -> TrainingSet:
    """Return what a method sees of the training data, on ``device``."""
    known = torch.from_numpy(np.stack([labels, bias]).astype(np.int64)).to(device)
    return TrainingSet(known[0], known[1], classes, shape)
