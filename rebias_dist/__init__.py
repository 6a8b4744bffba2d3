"""Distributed ReBias: train f against biased networks g, the same run on any layout of ranks."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd

    from rebias_dist.evaluation.loaded_run import LoadedRun


def load(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> LoadedRun:
    """Load a run from its folder: ``predict``, ``evaluate``, ``f``, ``g_nets``, ``metrics`` ….

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


def results(runs: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return the figures of runs as one table, for an analysis of your own.

    One row for each run, checkpoint, split and network. Runs are validated: a run that is
    unfinished or damaged is one row with its ``problem`` and without figures.

    Args:
        runs: a pattern such as ``runs/*``, a run's folder, a folder of runs, or several of them.

    Returns:
        The columns, empty where there is no value:

        ``run``, ``folder``, ``status``, ``problem``
            the run's name and folder, the status in its state.json, and the reason if it has no
            figures;
        ``dataset``, ``method``, ``setting``
            the setting is a name that runs on a data set share if they differ in their seeds alone;
            runs on another data set may have it too;
        ``rho``, ``seed``, ``data.seed``, ``method.lambda_f``, ``optimizer.lr``, …
            the training correlation, the seeds, and all settings that decide the weights, by
            dotted key;
        ``checkpoint``, ``chosen_on``, ``step``
            ``last``, ``best``, or ``oracle`` for a best one that test data chose;
        ``split``, ``network``, ``samples``, ``correct``
            the network is ``f``, ``g0``, …;
        ``accuracy``, ``standard_error``, ``chance``
            in [0, 1]; the standard error is binomial, sqrt(p (1 - p) / n);
        ``unbiased``, ``worst_class``, ``ece``, ``hsic``
            the mean accuracy over cells of class and texture cluster; the accuracy of the worst
            class; the expected calibration error; HSIC of the features of f and a g;
        ``aligned``, ``conflicting``, ``follows_bias``
            the accuracy where the bias is that which goes with the class, and where it is another
            one; the part of the latter that is taken for a class which goes with their bias;
        ``worst_group``, ``worst_group_name``, ``groups``
            the lowest accuracy of a group of class and bias that is large enough, its name, and a
            list of all groups: ``class``, ``value``, ``samples``, ``correct``, ``accuracy`` and
            Wilson's ``interval``;
        ``select``
            the figure that chose the best checkpoint.

    Raises:
        ConfigError: a path is no folder.
    """
    from rebias_dist.reporting import frame  # pandas takes a second to import

    return frame.results(runs)


def version() -> str:
    """Return the installed version, or that of the checkout."""
    try:
        return metadata.version("rebias-dist")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"
