"""Every network on every split, each sample once, with the same figures on any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError
from data_shards.format.manifest import load_index
from data_shards.images.clusters import CLUSTERS_NAME, read_clusters
from rebias_dist.data import ShardDataset
from rebias_dist.errors import DataError
from rebias_dist.evaluation.dependence import dependence
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.evaluation.figures import Truth, network_figures
from rebias_dist.evaluation.predictions import predict
from rebias_dist.methods.radii import Radii, radii_of
from rebias_dist.runs import checkpoint
from rebias_dist.runs.snapshot import Snapshot


def evaluate_split(
    evaluator: Evaluator,
    dataset: ShardDataset,
    radii: Radii | None,
    columns: Sequence[int] | None = None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate networks (``f``, ``g0`` …) on a split, in evaluation mode; a collective.

    The contents of a batch do not depend on the ranks, each sample counts once, and the figures
    are made in one place from the predictions of all ranks: every layout finds the same ones,
    and all ranks return them.

    Args:
        evaluator: the networks, and how samples reach them.
        dataset: the split; texture clusters are read from its folder if they are there.
        radii: kernel radii for HSIC; None: the medians of the features.
        columns: for networks of more classes than the split has, the output that stands for each
            class of the split.
        with_intervals: make bootstrap intervals too.

    Returns:
        ``samples``; ``networks``, for each what
        :func:`rebias_dist.evaluation.figures.network_figures` describes; and what
        :func:`rebias_dist.evaluation.dependence.dependence` does.

    Raises:
        DataError: on all ranks; the split or its clusters are damaged.
    """
    said = predict(evaluator, dataset, columns)
    found: dict[str, Any] = {}
    with evaluator.consensus.on_rank_zero() as leader:
        if leader:
            truth = Truth(
                said.labels, said.bias, _clusterings(dataset), len(dataset.manifest.classes)
            )
            found = {
                "samples": len(dataset),
                **dependence(said.features, radii),
                "networks": {
                    name: network_figures(
                        truth, said.predicted[name], confidence, with_intervals=with_intervals
                    )
                    for name, confidence in said.confidence.items()
                },
            }
    return dict(evaluator.consensus.broadcast(found))


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
    before_each: Callable[[], None] = lambda: None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate on several splits; a collective.

    ``before_each`` is called before each split; what it raises, it must raise on all ranks.
    """
    figures = {}
    for split, dataset in data.items():
        before_each()
        figures[split] = evaluate_split(evaluator, dataset, radii, with_intervals=with_intervals)
    return figures


def evaluate_checkpoints(
    evaluator: Evaluator, run: Snapshot, folder: Path, before_each: Callable[[], None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Evaluate a run's last and best checkpoint on its test splits; a collective.

    The networks are those of the best checkpoint afterwards, and may be at any time on the way.

    Args:
        evaluator: with the networks of the run, which are loaded from each checkpoint.
        run: its data, and what restores its networks.
        folder: of the checkpoints.
        before_each: called before each split; what it raises, it must raise on all ranks.

    Returns:
        What was found, by ``last`` and ``best``; and what is wrong with the best, if it is damaged:
        it cannot be made again, and must not take the last one with it.

    Raises:
        DataError: on all ranks; the last checkpoint or a split is damaged.
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
        figures = evaluate_splits(
            evaluator, run.data.tests, radii_of(state), before_each, with_intervals=True
        )
        tested[choice] = {"step": step, "splits": figures}
    return tested, {}
