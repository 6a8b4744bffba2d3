"""Whether the gradients of a step were finite, and which values were not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebias_dist.errors import NonFiniteError
from rebias_dist.ranks.device_wait import HostCopy, wait_for
from rebias_dist.step.metrics import Metrics
from rebias_dist.step.player import Player


@dataclass(frozen=True)
class _Judged:
    """The updates of a step, and the norms of their gradients on their way to the host."""

    step: int
    updates: list[tuple[Player, Metrics]]
    norms: HostCopy
    features: Mapping[str, Tensor]


class Verdicts:
    """The updates whose gradients were not looked at, so that a GPU need not wait for the host.

    The norms of a step are copied to the host at its end and read at the end of the next step, when
    the GPU has work to go on with. That is early enough where a gradient that is not finite ends
    the run or rolls it back, if :meth:`settle` is called before the weights are saved or evaluated.

    Args:
        device: of the networks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[tuple[Player, Tensor, Metrics]] = []
        self._last: _Judged | None = None

    def add(self, player: Player, norm: Tensor, metrics: Metrics) -> None:
        """Leave the verdict on an update for later, if the player may."""
        if player.judged_later:
            self._open.append((player, norm, metrics))

    def end_step(self, step: int, features: Mapping[str, Tensor]) -> None:
        """Begin to copy the norms of a step, and read those of the step before.

        Args:
            step: that ends.
            features: this rank's features in it, by network.

        Raises:
            NonFiniteError: see :meth:`settle`.
        """
        updates, self._open = self._open, []
        judged = None
        if updates:
            norms = HostCopy(torch.stack([norm for _, norm, _ in updates]))
            judged = _Judged(step, [(player, m) for player, _, m in updates], norms, features)
        self._read()
        self._last = judged

    def settle(self) -> None:
        """Read all verdicts, and wait until the device has ended all steps.

        What reads the weights next then need not wait inside CUDA, where no signal is heard.

        Raises:
            NonFiniteError: alike on all ranks, for the first bad update, with its step.
        """
        self._read()
        wait_for(self._device)

    def _read(self) -> None:
        last, self._last = self._last, None
        if last is None:
            return
        for (player, metrics), norm in zip(last.updates, last.norms.wait().tolist(), strict=True):
            if not math.isfinite(norm):
                error = player.not_finite()
                raise explained(error, last.step, player.name, metrics, last.features)

    def first(self, error: NonFiniteError) -> NonFiniteError:
        """Return the error of the last step, if its verdict was open and is bad, else ``error``."""
        try:
            self._read()
        except NonFiniteError as earlier:
            return earlier
        return error


def explained(
    error: NonFiniteError,
    step: int,
    player: str,
    metrics: Metrics,
    features: Mapping[str, Tensor],
) -> NonFiniteError:
    """Return the error with its step and the names of the values that are not finite."""
    error.step = step
    here = {f"{name}/features": rows for name, rows in features.items()} | metrics.sums
    error.here = [name for name, found in here.items() if not found.isfinite().all()]
    if coupled := metrics.not_finite(player):
        error.args = (f"{error}; not finite in the whole batch: {', '.join(coupled)}",)
    return error
