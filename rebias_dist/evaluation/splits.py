"""The figures of every network on every split: each sample once, the same on any layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError
from data_shards.format.manifest import load_index
from data_shards.images.clusters import CLUSTERS_NAME, read_clusters
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.data import ShardDataset
from rebias_dist.data.splits import Data
from rebias_dist.errors import ConfigError, DataError
from rebias_dist.evaluation.dependence import dependence
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.figures import Truth, network_figures
from rebias_dist.evaluation.groups import groups_of, listed
from rebias_dist.evaluation.predictions import Predictions, predict
from rebias_dist.evaluation.unbiased import SMALLEST_CELL
from rebias_dist.methods.radii import Radii, radii_of
from rebias_dist.ranks.waits import told
from rebias_dist.runs import checkpoint, results
from rebias_dist.runs.snapshot import Snapshot


def evaluate_split(
    evaluator: Evaluator,
    dataset: ShardDataset,
    radii: Radii | None,
    columns: Sequence[int] | None = None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate networks (``f``, ``g0`` …) on a split, in evaluation mode; a collective.

    All ranks return the same figures, on any layout: the content of a batch does not depend on the
    number of ranks, each sample counts once, and rank 0 computes the figures from the predictions
    of all ranks.

    Args:
        evaluator: the networks and the settings.
        dataset: the split; texture clusters are read from its folder if they are there.
        radii: kernel radii for HSIC; None: the median distances of the features.
        columns: for networks with more classes than the split, the output for each class of the
            split.
        with_intervals: compute bootstrap intervals too.

    Returns:
        ``samples``, their number; ``values``, the names of the values of the bias; ``networks``,
        for each the figures of :func:`rebias_dist.evaluation.figures.network_figures`, and
        ``groups`` as :func:`rebias_dist.evaluation.groups.groups_of` returns them; the worst group
        has its names too. And the entries of
        :func:`rebias_dist.evaluation.dependence.dependence`.

    Raises:
        DataError: on all ranks, if the split or its clusters are damaged.
    """
    predictions = predict(evaluator, dataset, columns)
    found: dict[str, Any] = {}
    leads = evaluator.consensus.rank == 0
    told_of = told(f"figures of {dataset.manifest.split}", aloud=leads)
    with evaluator.consensus.on_rank_zero() as leader, told_of:
        if leader:
            # The other ranks wait for HSIC, which can take a second on a CPU.
            device = evaluator.precision.device
            features = {name: rows.to(device) for name, rows in predictions.features.items()}
            found = figures_of(
                replace(predictions, features=features),
                truth_of(dataset, evaluator.rule),
                dataset.manifest.classes,
                dataset.values.names,
                radii,
                with_intervals=with_intervals,
            )
    return dict(evaluator.consensus.broadcast(found))


def figures_of(
    predictions: Predictions,
    truth: Truth,
    classes: Sequence[str],
    values: Sequence[str],
    radii: Radii | None,
    *,
    with_intervals: bool,
) -> dict[str, Any]:
    """Return the figures of predictions, as :func:`evaluate_split` does.

    Args:
        predictions: of all samples.
        truth: what is known of the samples.
        classes: names of the labels.
        values: names of the values of the bias.
        radii: see :func:`evaluate_split`.
        with_intervals: compute bootstrap intervals too.
    """
    networks = {
        name: network_figures(
            truth, predicted, predictions.confidence[name], with_intervals=with_intervals
        )
        for name, predicted in predictions.predicted.items()
    }
    for figures in networks.values():
        counts = figures["bias_correct"], figures["bias_count"]
        figures["groups"] = groups_of(*counts, classes, values)
        if worst := figures["worst_group"]:
            worst["class"] = classes[worst["label"]]
            worst["value"] = values[worst["bias"]]
    return {
        "samples": len(truth.labels),
        "values": list(values),
        **dependence(predictions.features, radii),
        "networks": networks,
    }


def truth_of(dataset: ShardDataset, rule: BiasRule) -> Truth:
    """Return what is known of a split's samples; DataError if its clusters are damaged."""
    classes, values = dataset.manifest.classes, dataset.values.names
    return Truth(
        dataset.labels.astype(np.int64),
        dataset.bias.astype(np.int64),
        _clusterings(dataset),
        len(classes),
        rule.ids(classes, values),
        len(values),
    )


def check_select(config: Config, data: Data) -> None:
    """Check that the data that choose the best checkpoint have the figure which chooses it.

    Raises:
        ConfigError: they have no sample for it.
        DataError: their clusters are damaged.
    """
    if config.evaluate.select == "accuracy":
        return
    split = results.choosing_split(config)
    # Whether a figure exists does not depend on the predictions.
    truth = truth_of(data.monitored[split], data.rule)
    figures = network_figures(truth, truth.labels, np.ones(len(truth.labels)))
    if results.selected(config, figures) is None:
        lacking = {
            "worst_group": f"no group of class and bias with {SMALLEST_CELL} images or more",
            "conflicting": "no image that conflicts with the bias of its class",
            "unbiased": f"no cell of class and texture cluster with {SMALLEST_CELL} images or more",
        }
        select = config.evaluate.select
        raise ConfigError(
            f"evaluate.select: {select} cannot choose a checkpoint, for {split} has "
            f"{lacking[select]}; use accuracy, or other selection data"
        )


def too_small(config: Config, data: Data) -> str:
    """Return a warning of groups that are too small to choose the best checkpoint; "" if none is.

    Without it, ``worst_group`` may choose a network that is wrong on all of such a group.
    """
    if config.evaluate.select != "worst_group":
        return ""
    split = results.choosing_split(config)
    dataset = data.monitored[split]
    cells = Counter(zip(dataset.labels.tolist(), dataset.bias.tolist(), strict=True))
    classes, values = dataset.manifest.classes, dataset.values.names
    small = {
        f"{classes[label]}, {values[bias]}": str(count)
        for (label, bias), count in sorted(cells.items())
        if bias >= 0 and count < SMALLEST_CELL
    }
    told = f"evaluate.select: worst_group passes over groups of fewer than {SMALLEST_CELL} images"
    return f"{told} in {split}: {listed(small)}" if small else ""


def _clusterings(dataset: ShardDataset) -> NDArray[np.int64]:
    if not (dataset.folder / CLUSTERS_NAME).exists():
        return np.zeros((0, len(dataset)), dtype=np.int64)
    try:
        return read_clusters(dataset.folder, load_index(dataset.folder, dataset.manifest))
    except DataShardsError as error:
        raise DataError(str(error)) from None


def evaluate_splits(
    evaluator: Evaluator,
    data: Mapping[str, ShardDataset],
    radii: Radii | None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate on several splits; a collective.

    Args:
        evaluator: the networks and the settings.
        data: the splits by name.
        radii: see :func:`evaluate_split`.
        with_intervals: compute bootstrap intervals too.

    Returns:
        The figures of each split, as :func:`evaluate_split` returns them.

    Raises:
        InterruptedRun: on all ranks, if one of them was asked to stop.
    """
    return {
        split: evaluate_split(evaluator, dataset, radii, with_intervals=with_intervals)
        for split, dataset in data.items()
    }


def evaluate_checkpoints(
    evaluator: Evaluator, run: Snapshot, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Evaluate a run's last and best checkpoint on its test splits; a collective.

    This loads the weights of the last and then of the best checkpoint into the run's networks, and
    leaves them there.

    Args:
        evaluator: with the networks of the run.
        run: has the data, and restores the networks.
        folder: of the checkpoints.

    Returns:
        ``step`` and ``splits`` (the figures) by ``last`` and ``best``; and the error of the best
        checkpoint by its name, if it is damaged. That is not raised, because it cannot be repaired
        and the figures of the last checkpoint are still valid.

    Raises:
        DataError: on all ranks, if the last checkpoint or a split is damaged.
        InterruptedRun: on all ranks, if one of them was asked to stop.
    """
    consensus = evaluator.consensus
    tested: dict[str, Any] = {}
    for choice in ("last", "best"):
        step = 0
        with consensus.on_rank_zero() as leader:
            if leader:
                step = checkpoint.choose(folder, choice)
        step = consensus.broadcast(step)
        if choice == "best" and step == tested["last"]["step"]:
            tested["best"] = tested["last"]
            continue
        try:
            with consensus.together():
                state = checkpoint.load(folder, step)
        except DataError as error:
            if choice == "last":
                raise
            return tested, {choice: str(error)}
        with consensus.together():
            run.restore_networks(state)
        figures = evaluate_splits(evaluator, run.data.tests, radii_of(state), with_intervals=True)
        tested[choice] = {"step": step, "splits": figures}
    return tested, {}
