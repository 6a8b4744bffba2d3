"""What the engine does for a method before an epoch and between two steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.format.manifest import Normalize
from rebias_dist.assemble import Parts
from rebias_dist.config.schema import Config
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.predictions import predict
from rebias_dist.methods.base import Method
from rebias_dist.runs import checkpoint
from rebias_dist.runs.networks import Initial, initial_state, network_config, read_weights
from rebias_dist.runs.snapshot import Snapshot
from rebias_dist.step.measuring import measure_radii

_log = logging.getLogger("rebias_dist")


class MethodEngine:
    """The :class:`~rebias_dist.methods.base.Engine` of a run.

    Args:
        config: of the run.
        parts: its networks and data.
        evaluator: its evaluation.
    """

    def __init__(self, config: Config, parts: Parts, evaluator: Evaluator) -> None:
        self._config, self._parts, self._evaluator = config, parts, evaluator

    def load_weights(self) -> None:
        """Give the networks of a new run the weights that its configuration names; a collective.

        Rank 0 reads them. Images are then normalised as for these weights, if that is known.
        """
        parts, config, consensus = self._parts, self._config, self._evaluator.consensus
        found: dict[str, Initial] = {}
        constants = None
        with consensus.on_rank_zero() as leader:
            if leader:
                found, constants = read_weights(config, parts.networks, len(parts.data.classes))
                if found and _gets_turns(type(parts.method)):
                    # For restart(): their file or their run may change or vanish meanwhile.
                    states = {name: initial.state for name, initial in found.items()}
                    kept = {"step": 0, "networks": states}
                    checkpoint.save(parts.folder.initial, 0, kept, keep=1)
        for name, network in parts.networks.items():
            if network_config(config, name).begins_elsewhere:
                network.load_state_dict(self._shared(name, found.get(name)))
            if name in found and found[name].note:
                _log.info("%s: %s", name, found[name].note)
        seen = consensus.broadcast(constants and [constants.mean, constants.std])
        if seen is not None:
            constants = Normalize(mean=tuple(seen[0]), std=tuple(seen[1]))
            if constants != parts.normalise.constants:
                _log.info("images are normalised as for the weights: %s", constants)
            parts.normalise.use(constants)

    def _shared(self, name: str, initial: Initial | None) -> dict[str, Any]:
        """Return rank 0's initial state of a network on all ranks, on the CPU."""
        here = self._parts.networks[name].state_dict()
        state: dict[str, Any] = initial.state if initial else checkpoint.copied(here)
        self._evaluator.consensus.copy_from_zero(state.values())
        return state

    def begin_epoch(self, at: Snapshot, number: int) -> bool:
        """Give the method its turn before an epoch of the game, and measure the kernel radii.

        A run that is resumed in the epoch does neither again.

        Args:
            at: where the run is; notes what was done.
            number: of the epoch, pretraining included.

        Returns:
            Whether anything was done.

        Raises:
            InterruptedRun: on all ranks, if one of them was asked to stop. A method's turn may be
                half done then.
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

    def may_change(self, at: Snapshot, number: int) -> bool:
        """Return whether :meth:`begin_epoch` lets the method change the networks or its state."""
        has_turn = type(self._parts.method).before_epoch is not Method.before_epoch
        return has_turn and at.begun_epoch != number

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
        parts, initial = self._parts, None
        with self._evaluator.consensus.on_rank_zero() as leader:
            if leader:
                kept, was_read = {}, network_config(self._config, name).begins_elsewhere
                # Runs of earlier versions have no copy.
                if was_read and checkpoint.steps(parts.folder.initial):
                    kept = checkpoint.load(parts.folder.initial, 0)["networks"]
                if name in kept:
                    initial = Initial(kept[name])
                else:
                    initial = initial_state(self._config, name, len(parts.data.classes))
        parts.players[name].restart(self._shared(name, initial))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""
        total = values.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total


def _gets_turns(method: type[Method]) -> bool:
    """Return whether a method gets the engine, and so may restart a network."""
    base = Method.before_epoch, Method.after_step
    return (method.before_epoch, method.after_step) != base
