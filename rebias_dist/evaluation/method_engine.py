"""What the engine does for a method before an epoch and between two steps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.assemble import Parts
from rebias_dist.config.schema import Config
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.predictions import predict
from rebias_dist.runs.networks import initial_state, network_config
from rebias_dist.runs.snapshot import Snapshot
from rebias_dist.step.measuring import measure_radii


class MethodEngine:
    """The :class:`~rebias_dist.methods.base.Engine` of a run.

    Args:
        config: of the run.
        parts: its networks and data.
        evaluator: its evaluation.
    """

    def __init__(self, config: Config, parts: Parts, evaluator: Evaluator) -> None:
        self._config, self._parts, self._evaluator = config, parts, evaluator

    def load_checkpoints(self) -> None:
        """Give the networks of a new run the weights of their ``checkpoint``; a collective."""
        with self._evaluator.consensus.together():
            for name, network in self._parts.networks.items():
                if network_config(self._config, name).checkpoint is not None:
                    weights = initial_state(self._config, name, len(self._parts.data.classes))
                    network.load_state_dict(weights)

    def begin_epoch(self, at: Snapshot, number: int) -> bool:
        """Give the method its turn before an epoch of the game, and measure the kernel radii.

        A run that is resumed in the epoch does neither again.

        Args:
            at: where the run is; notes what was done.
            number: of the epoch, pretraining included.

        Returns:
            Whether anything was done.
        """
        parts, config, begun = self._parts, self._config, False
        method = parts.method
        if at.begun_epoch != number:
            method.before_epoch(number - parts.layout.pretrain_epochs, self)
            at.begun_epoch, begun = number, True
        if method.needs_radii and at.radii_epoch != number:
            if at.radii is None or config.radius.update == "epoch":
                consensus = self._evaluator.consensus
                at.radii = measure_radii(
                    config, parts.game, parts.loader, consensus, epoch=number, step=at.step
                )
            at.radii_epoch, begun = number, True
        return begun

    def predict(self, name: str) -> Tensor:
        """Return a network's predictions in evaluation mode, int64 ``[n]``, of the training set.

        The images are those of evaluation, without augmentation.
        """
        parts = self._parts
        evaluator = replace(self._evaluator, networks={name: parts.networks[name]}, hsic_samples=0)
        found = predict(evaluator, parts.data.train).predicted[name]
        return torch.from_numpy(found).to(parts.precision.device)

    def restart(self, name: str) -> None:
        """Give a network its initial weights again, and a new optimizer."""
        parts = self._parts
        with self._evaluator.consensus.together():
            weights = initial_state(self._config, name, len(parts.data.classes))
        parts.players[name].restart(weights)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        total = values.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total
