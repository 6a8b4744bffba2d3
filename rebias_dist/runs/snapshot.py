"""The state of a run: everything that is needed to continue it."""

from __future__ import annotations

from typing import Any

from data_shards.format.manifest import Normalize
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.files import differences, parse_yaml, to_yaml, validate
from rebias_dist.config.schema import Config
from rebias_dist.data.normalisation import Normalise
from rebias_dist.data.splits import Data
from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Method, restore_state
from rebias_dist.methods.radii import Radii, radii_of
from rebias_dist.step.player import Player


class Snapshot:
    """The position and state of a run.

    No generator's state is saved, because all randomness is keyed by the seed, the step or epoch,
    and its purpose. These keys are saved.

    Args:
        players: the networks with their optimizers.
        data: the splits.
        shape: (C, H, W) of the networks' input.
        config: the resolved configuration.
        steps_per_epoch: optimizer steps of an epoch.
        method: whose state is saved.
        normalise: of the images; it goes on with the constants that it was saved with.
    """

    def __init__(
        self,
        players: dict[str, Player],
        data: Data,
        shape: tuple[int, int, int],
        config: Config,
        steps_per_epoch: int,
        method: Method,
        normalise: Normalise,
    ) -> None:
        self.players = players
        self.method = method
        self.data = data
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.normalise = normalise
        self._shape = shape
        self.step = 0
        """Optimizer steps taken, pretraining included."""
        self.epoch = 0
        """Epochs that are done, including their evaluation."""
        self.radii: Radii | None = None
        self.radii_epoch = -1
        """The epoch for which the radii were measured."""
        self.begun_epoch = -1
        """The epoch before which the method last had its turn."""
        self.best: dict[str, float] | None = None
        """The best ``figure`` on the monitored split so far, and its ``step``."""
        self.cut_off: int | None = None
        """The step at which ``max_steps`` has ended the run, if it has no regular evaluation there.
        It is not saved: a run that goes on does not know it."""

    # ---------------------------------------------------------------- to and from disk

    def state(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, which torch loads without unpickling."""
        radii = None if self.radii is None else {"f": self.radii.f, "g": list(self.radii.g)}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "radii": radii,
            "radii_epoch": self.radii_epoch,
            "method": self.method.state(),
            "begun_epoch": self.begun_epoch,
            "best": self.best,
            "players": {name: player.state_dict() for name, player in self.players.items()},
            "classes": list(self.data.classes),
            # With it the weights can be used without the training data.
            "input": {
                "mean": list(self.normalise.constants.mean),
                "std": list(self.normalise.constants.std),
                "shape": list(self._shape),
            },
            "data": self.data.digests(),
            "bias": self.data.rule.model_dump(),
            "config": to_yaml(self.config),
            "randomness": {
                "seed": self.config.seed,
                "step": self.step,
                "epoch": self.epoch,
                "steps_per_epoch": self.steps_per_epoch,
            },
        }

    def changes(self, state: dict[str, Any]) -> dict[str, str]:
        """Return what has changed since a state was saved: 'key: old → new', by key.

        The keys are the fields of the configuration that the weights depend on,
        ``manifest.<split>`` for the data, and ``data.aligned`` for the rule.
        """
        lines = differences(_config_of(state).identity(), self.config.identity())
        manifests = self.data.digests()
        known = {split: digest for split, digest in state["data"].items() if split in manifests}
        now = {split: manifests[split] for split in known}
        lines += differences({"manifest": known}, {"manifest": now})
        if "bias" in state:  # checkpoints of earlier versions have no rule
            rules = BiasRule.model_validate(state["bias"]), self.data.rule
            old, new = (str(rule.aligned) for rule in rules)
            lines += differences({"data.aligned": old}, {"data.aligned": new})
        return {line.partition(": ")[0]: line for line in lines}

    def restore(self, state: dict[str, Any]) -> list[str]:
        """Continue from a saved state; the caller has checked its :meth:`changes`.

        Returns:
            A line for each part that begins anew, because it does not fit what was saved.

        Raises:
            ConfigError: the networks or the steps of an epoch differ.
        """
        then = state["randomness"]["steps_per_epoch"]
        if then != self.steps_per_epoch:
            raise ConfigError(
                f"name: {self.config.name} was trained with {then} steps per epoch, and now there "
                f"are {self.steps_per_epoch}, so it cannot continue; start another run"
            )
        self.restore_networks(state)
        optimizer, anew = _config_of(state).optimizer.name, []
        for name, player in self.players.items():
            anew += player.load_training_state(state["players"][name], optimizer)
        if seen := state.get("input"):  # 0.1 has none
            self.normalise.use(Normalize(mean=tuple(seen["mean"]), std=tuple(seen["std"])))
        self.step, self.epoch = state["step"], state["epoch"]
        self.radii, self.radii_epoch = radii_of(state), state["radii_epoch"]
        if self.radii is not None and len(self.radii.g) != len(self.players.keys() - {"f"}):
            self.radii, self.radii_epoch = None, -1
            if self.method.needs_radii:
                anew.append(
                    "the kernel radii are measured anew, because the run had more networks g"
                )
        # Runs of 0.1 have no state of a method.
        remembered = state.get("method", {})
        if remembered and state["data"].get("train") != self.data.digests()["train"]:
            raise ConfigError(
                f"method.name: what {self.config.method.name} remembers of the training samples is "
                "of other training data; start another run"
            )
        restore_state(self.method, remembered)
        self.begun_epoch = state.get("begun_epoch", -1)
        self.best = state["best"]
        return anew

    def restore_networks(self, state: dict[str, Any]) -> None:
        """Load only the networks' weights.

        Raises:
            ConfigError: a network is missing or has other parameters.
        """
        for name, player in self.players.items():
            if name not in state["players"]:
                raise ConfigError(f"the checkpoint of {self.config.name} has no network {name}")
            player.load_network(state["players"][name])

    # ---------------------------------------------------------------- on the way

    def note(self, figure: float) -> bool:
        """Record a figure of the monitored split; return whether it is the best so far."""
        improved = self.best is None or figure > self.best["figure"]
        if improved:
            self.best = {"figure": figure, "step": self.step}
        return improved

    @property
    def best_step(self) -> int | None:
        """Return the step of the best figure so far; before there is one, that of a cut-off."""
        return self.cut_off if self.best is None else int(self.best["step"])

    def constants(self) -> dict[str, float]:
        """Return the learning rates and radii, as scalars by tag."""
        values = {
            f"{name}/lr": float(player.optimizer.param_groups[0]["lr"])
            for name, player in self.players.items()
        }
        if self.radii is not None:
            values["f/sigma"] = self.radii.f
            values |= {f"g{index}/sigma": sigma for index, sigma in enumerate(self.radii.g)}
        return values


def _config_of(state: dict[str, Any]) -> Config:
    """Return the configuration with which a state was saved."""
    return validate(parse_yaml(state["config"], "the checkpoint's configuration"))
