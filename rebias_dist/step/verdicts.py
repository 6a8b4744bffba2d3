"""Whether the gradients of a step were finite, and which values were not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rebias_dist.errors import NonFiniteError
from rebias_dist.ranks.device_wait import to_host
from rebias_dist.step.metrics import Metrics
from rebias_dist.step.player import Player


class Verdicts:
    """The updates of a step whose gradients were not looked at, so that a GPU need not wait.

    They are read in one copy at the end of the step, which is early enough where a gradient that
    is not finite ends the run or rolls it back: nobody sees the weights in between.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Player, Tensor, Metrics]] = []

    def add(self, player: Player, norm: Tensor, metrics: Metrics) -> None:
        """Leave the verdict on an update for the end of the step, if the player may."""
        if player.judged_later:
            self._open.append((player, norm, metrics))

    def read(self, features: Mapping[str, Tensor]) -> None:
        """Wait for the device; raise NonFiniteError, alike on all ranks, for the first bad update.

        Args:
            features: this rank's features in this step, by network.
        """
        updates, self._open = self._open, []
        if not updates:
            return
        norms = to_host(torch.stack([norm for _, norm, _ in updates]))
        for (player, _, metrics), norm in zip(updates, norms.tolist(), strict=True):
            if not math.isfinite(norm):
                raise explained(player.not_finite(), player.name, metrics, features)


def explained(
    error: NonFiniteError, player: str, metrics: Metrics, features: Mapping[str, Tensor]
) -> NonFiniteError:
    """Return the error of a player with the names of the values that are not finite."""
    here = {f"{name}/features": rows for name, rows in features.items()} | metrics.sums
    error.here = [name for name, found in here.items() if not found.isfinite().all()]
    if coupled := metrics.not_finite(player):
        error.args = (f"{error}; not finite in the whole batch: {', '.join(coupled)}",)
    return error
