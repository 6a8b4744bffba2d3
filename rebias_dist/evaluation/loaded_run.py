"""Loading a run's networks and results from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_shards.format.manifest import Normalize
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.methods.radii import Radii, radii_of
from rebias_dist.models import load_state
from rebias_dist.runs import results
from rebias_dist.runs.checkpoint import load, load_choice
from rebias_dist.runs.networks import build_networks
from rebias_dist.runs.run_folder import RunFolder
from rebias_dist.step.precision import Precision


@dataclass(frozen=True)
class LoadedRun:
    """A run's networks at one checkpoint, with its configuration, data and results."""

    f: nn.Module | None
    """The target network in evaluation mode; None if the method has none."""
    g_nets: list[nn.Module]
    """The biased networks in evaluation mode."""
    config: Config
    metrics: dict[str, Any] | None
    """The content of results.json; None for a run that is not finished."""
    radii: Radii | None
    """Kernel radii at the checkpoint; None if the method or the pretraining has none."""
    step: int
    """Optimizer steps taken."""
    digests: dict[str, str]
    """Digest of the manifest of each split that the run was trained and tested on."""
    classes: tuple[str, ...]
    """Names of the classes, by label."""
    constants: Normalize | None
    """Mean and deviation by which images are normalised; None for checkpoints of earlier versions,
    which do not have them."""
    shape: tuple[int, int, int] | None
    """Channels, height and width of the networks' input; None as above."""


def load_run(run: str | Path, checkpoint: str | int = "best", device: str = "cpu") -> LoadedRun:
    """Load a checkpoint of a run; see :func:`rebias_dist.load`.

    Args:
        run: the run's folder.
        checkpoint: ``best``, ``last`` or a step.
        device: where the networks go.

    Raises:
        ConfigError: there is no such run or checkpoint, or it does not match its configuration.
        DataError: the checkpoint is damaged.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if isinstance(checkpoint, str):
        state = load_choice(folder.checkpoints, checkpoint)
    else:
        state = load(folder.checkpoints, checkpoint)
    precision = Precision(config.precision, torch.device(device))
    networks = build_networks(config, len(state["classes"]), precision)
    for name, network in networks.items():
        if name not in state["players"]:
            raise ConfigError(f"{run}: its checkpoint has no network {name}")
        load_state(network, state["players"][name]["network"], where=f"{run}: {name}")
        network.eval()
    seen = state.get("input")
    return LoadedRun(
        f=networks.pop("f", None),
        g_nets=list(networks.values()),
        config=config,
        metrics=results.read(folder.results_file) if folder.has_results else None,
        radii=radii_of(state),
        step=state["step"],
        digests=state["data"],
        classes=tuple(state["classes"]),
        constants=Normalize(mean=tuple(seen["mean"]), std=tuple(seen["std"])) if seen else None,
        shape=tuple(seen["shape"]) if seen else None,
    )
