"""Distributed ReBias: train f against biased networks g, the same run on any layout of ranks."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rebias_dist.evaluation.loaded_run import LoadedRun


def load(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> LoadedRun:
    """Load a run from its folder: ``f``, ``g_nets``, ``config``, ``metrics``.

    Args:
        run: the run's folder, ``runs/<name>``.
        checkpoint: ``best`` (chosen on selection data) or ``last``.
        device: where the networks go.

    Raises:
        ConfigError: no run is there, or it has no such checkpoint yet.
        DataError: the checkpoint is damaged.
    """
    from rebias_dist.evaluation.loaded_run import load_run

    return load_run(run, checkpoint, device)


def version() -> str:
    """Return the installed version, or that of the checkout."""
    try:
        return metadata.version("rebias-dist")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"
