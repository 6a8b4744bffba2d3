"""Weighted draws with replacement: a pure function of seed, epoch and position.

The draws come from the whole split, not from a window of shards as the permutation of
:mod:`rebias_dist.data.order`: a rare sample is drawn often, and its copies must not meet in a few
batches. Reads are then spread over all shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.ordering import derive
from rebias_dist.config.data import DataConfig
from rebias_dist.data.transforms import uniform
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class Draws:
    """Draws with replacement: a group by its weight, then any of its samples."""

    members: NDArray[np.int64]
    """Sample ids [n], group after group."""
    sizes: NDArray[np.int64]
    """Samples of each group, [G], at least 1."""
    weights: NDArray[np.float64]
    """Chance of each group, [G], up to a factor."""

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the sample ids of an epoch, int64 [n]; a draw depends on its position alone."""
        n = len(self.members)
        ends = np.cumsum(self.weights)
        chosen = uniform(derive("group", seed, epoch), 0, n) * ends[-1]
        groups = np.searchsorted(ends[:-1], chosen, side="right")
        sizes = self.sizes[groups]
        places = (uniform(derive("member", seed, epoch), 0, n) * sizes).astype(np.int64)
        begins = np.cumsum(self.sizes) - self.sizes
        # The product of a draw just below 1 and the size may be rounded up to the size.
        ids: NDArray[np.int64] = self.members[begins[groups] + np.minimum(places, sizes - 1)]
        return ids


def draws_of(
    data: DataConfig, labels: NDArray[np.integer], bias: NDArray[np.integer], classes: Sequence[str]
) -> Draws | None:
    """Return the draws that ``data.sampling`` asks for; None for the permutation of ``uniform``.

    A group is a class and a bias label. ``class_balanced`` and ``group_balanced`` give each class
    or group the same chance. ``bias_conflicting:RATIO`` is the sampler of BiasCon (Hong and Yang,
    NeurIPS 2021): the weight of a sample is 1 / p(bias | class), but at most RATIO times the
    smallest weight.

    Args:
        data: the section of the configuration.
        labels: of the training samples, [n], from 0 to ``len(classes)`` - 1.
        bias: their bias labels, [n]; -1: none.
        classes: names of the classes.

    Raises:
        ConfigError: a sample has no bias label but needs one, or a class or group is empty.
    """
    if data.sampling == "uniform":
        return None
    if data.sampling == "class_balanced":
        values, which = np.zeros(1, np.int32), np.zeros(len(labels), np.int64)
    else:
        without = int((bias < 0).sum())
        if without:
            raise ConfigError(
                f"data.sampling: {data.sampling} needs bias labels, but {without} of the "
                f"{len(bias)} training samples have none; use uniform or class_balanced"
            )
        values, which = np.unique(bias, return_inverse=True)
    groups = labels.astype(np.int64) * len(values) + which
    counts = np.bincount(groups, minlength=len(classes) * len(values))
    if data.conflict_ratio is None:
        if not counts.all():
            label, value = divmod(int(np.argmin(counts)), len(values))
            named = f" with bias {values[value]}" if data.sampling == "group_balanced" else ""
            raise ConfigError(
                f"data.sampling: {data.sampling} needs samples of the class {classes[label]!r}"
                f"{named}, but the training split has none; use uniform or bias_conflicting"
            )
        weights = np.ones(len(counts))
    else:
        weights = _conflicting(counts.reshape(len(classes), -1), data.conflict_ratio)
    there = counts > 0
    return Draws(np.argsort(groups, kind="stable"), counts[there], weights[there])


def _conflicting(counts: NDArray[np.int64], ratio: float) -> NDArray[np.float64]:
    """Return the weight of each group, [classes · biases], from its count [classes, biases]."""
    if ((counts > 0).sum(1) <= 1).all():
        raise ConfigError(
            "data.sampling: bias_conflicting finds one bias label in each class of the training "
            "split, so no sample conflicts with its class; use uniform"
        )
    # 1 / p(bias | class); an empty group has no sample that could have a weight.
    of_sample = counts.sum(1, keepdims=True) / np.maximum(counts, 1)
    limit = ratio * of_sample[counts > 0].min()
    weights: NDArray[np.float64] = (counts * np.minimum(of_sample, limit)).ravel()
    return weights
