"""Where a run stands: all that decides its future, saved and restored as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rebias_dist.assemble import Data
from rebias_dist.config import Config
from rebias_dist.config_files import to_yaml
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.minimax import Radii
from rebias_dist.models import load_state
from rebias_dist.runtime import checkpoint
from rebias_dist.runtime.player import Player


class Snapshot:
    """The position and state of a run.

    Randomness needs no state: all of it is keyed by the seed and by what it is for.
    """

    def __init__(self, players: dict[str, Player], data: Data, config: Config) -> None:
        self.players = players
        self.data = data
        self.config = config
        self.step = 0
        """Optimizer steps taken, pretraining included."""
        self.epoch = 0
        """Epochs that are over, with their evaluation."""
        self.radii: Radii | None = None
        self.radii_epoch = -1
        """The epoch for which the radii were measured."""
        self.best: dict[str, float] | None = None
        """The best figure on the monitored split so far, and its step."""

    # ---------------------------------------------------------------- to and from disk

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, which load without unpickling."""
        radii = None if self.radii is None else {"f": self.radii.f, "g": list(self.radii.g)}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "radii": radii,
            "radii_epoch": self.radii_epoch,
            "best": self.best,
            "players": {name: player.state_dict() for name, player in self.players.items()},
            "classes": list(self.data.classes),
            "data": self.data.digests(),
            "config": to_yaml(self.config),
            "versions": {"torch": str(torch.__version__)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ConfigError: it was trained on other data, or with other networks.
        """
        self.data.check_digests(state["data"])
        self.restore_networks(state)
        for name, player in self.players.items():
            player.load_training_state(state["players"][name])
        self.step, self.epoch = state["step"], state["epoch"]
        self.radii, self.radii_epoch = radii_of(state), state["radii_epoch"]
        self.best = state["best"]

    def restore_networks(self, state: dict[str, Any]) -> None:
        """Load the networks' weights alone."""
        for name, player in self.players.items():
            if name not in state["players"]:
                raise ConfigError(f"the checkpoint of {self.config.name} has no network {name}")
            load_state(player.network, state["players"][name]["network"], where=name)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of this step.

        Raises:
            RebiasError: the disk refused; the checkpoints before are still there.
        """
        best_step = None if self.best is None else int(self.best["step"])
        keep = self.config.checkpoint.keep
        try:
            checkpoint.save(folder, self.step, self.state(), keep=keep, best_step=best_step)
        except (OSError, RuntimeError) as error:
            raise RebiasError(f"{folder}: step {self.step} could not be saved: {error}") from None

    def try_save(self, folder: Path) -> RebiasError | None:
        """Save, and return the error instead of raising it: one rank must not leave alone."""
        try:
            self.save(folder)
        except RebiasError as error:
            return error
        return None

    # ---------------------------------------------------------------- on the way

    def note(self, figure: float) -> bool:
        """Note a figure of the monitored split; return whether it is the best so far."""
        improved = self.best is None or figure > self.best["figure"]
        if improved:
            self.best = {"figure": figure, "step": self.step}
        return improved

    def constants(self) -> dict[str, float]:
        """Return the scalars that do not come from a step: learning rates and radii."""
        values = {
            f"{name}/lr": float(player.optimizer.param_groups[0]["lr"])
            for name, player in self.players.items()
        }
        if self.radii is not None:
            values["f/sigma"] = self.radii.f
            values |= {f"g{index}/sigma": sigma for index, sigma in enumerate(self.radii.g)}
        return values


def radii_of(state: dict[str, Any]) -> Radii | None:
    """Return the kernel radii in a saved state."""
    radii = state["radii"]
    return None if radii is None else Radii(radii["f"], tuple(radii["g"]))
