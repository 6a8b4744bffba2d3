"""Every network on every split, each sample once, with the same figures on any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from data_shards.errors import DataShardsError
from data_shards.format.manifest import load_index
from data_shards.images.clusters import CLUSTERS_NAME, read_clusters
from rebias_dist.assemble import Normalise, eval_transform
from rebias_dist.config.schema import Config
from rebias_dist.data import ShardDataset, Transform
from rebias_dist.errors import DataError
from rebias_dist.evaluation.dependence import dependence
from rebias_dist.evaluation.figures import Truth, network_figures
from rebias_dist.evaluation.predictions import predict
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.runs import checkpoint
from rebias_dist.runs.snapshot import Snapshot, radii_of
from rebias_dist.step.minimax import Radii
from rebias_dist.step.precision import Precision


def evaluate_split(
    networks: Mapping[str, nn.Module],
    dataset: ShardDataset,
    *,
    batch: int,
    transform: Transform,
    workers: int,
    normalise: Normalise,
    precision: Precision,
    radii: Radii | None,
    hsic_samples: int,
    consensus: Consensus,
    columns: Sequence[int] | None = None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate networks (``f``, ``g0`` …) on a split, in evaluation mode; a collective.

    The contents of a batch do not depend on the ranks, each sample counts once, and the figures
    are made in one place of all that the networks said: every layout finds the same ones, and
    all ranks return them.

    Args:
        networks: by name.
        dataset: the split; texture clusters are read from its folder if they are there.
        batch, transform, workers, normalise, precision: how samples reach the networks.
        radii: kernel radii for HSIC; None: the medians of the features.
        hsic_samples: number of samples, from the first, whose features are compared.
        consensus: the ranks.
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
    said = predict(
        networks,
        dataset,
        batch=batch,
        transform=transform,
        workers=workers,
        normalise=normalise,
        precision=precision,
        feature_samples=hsic_samples,
        consensus=consensus,
        columns=columns,
    )
    found: dict[str, Any] = {}
    with consensus.on_rank_zero() as leader:
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
    return dict(consensus.broadcast(found))


def _clusterings(dataset: ShardDataset) -> NDArray[np.int64]:
    if not (dataset.folder / CLUSTERS_NAME).exists():
        return np.zeros((0, len(dataset)), dtype=np.int64)
    try:
        return read_clusters(dataset.folder, load_index(dataset.folder, dataset.manifest))
    except DataShardsError as error:
        raise DataError(str(error)) from None


def evaluate_splits(
    networks: Mapping[str, nn.Module],
    config: Config,
    data: Mapping[str, ShardDataset],
    normalise: Normalise,
    precision: Precision,
    radii: Radii | None,
    consensus: Consensus,
    before_each: Callable[[], None] = lambda: None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Evaluate on several splits as a configuration says; a collective.

    ``before_each`` is called before each split; what it raises, it must raise on all ranks.
    """
    figures = {}
    for split, dataset in data.items():
        before_each()
        figures[split] = evaluate_split(
            networks,
            dataset,
            batch=config.evaluate.batch,
            transform=eval_transform(config),
            workers=config.data.workers,
            normalise=normalise,
            precision=precision,
            radii=radii,
            hsic_samples=config.evaluate.hsic_samples,
            consensus=consensus,
            with_intervals=with_intervals,
        )
    return figures


def evaluate_checkpoints(
    run: Snapshot,
    folder: Path,
    networks: Mapping[str, nn.Module],
    normalise: Normalise,
    precision: Precision,
    consensus: Consensus,
    before_each: Callable[[], None],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Evaluate a run's last and best checkpoint on its test splits; a collective.

    The networks are those of the best checkpoint afterwards, and may be at any time on the way.

    Returns:
        What was found, by ``last`` and ``best``; and what is wrong with the best, if it is damaged:
        it cannot be made again, and must not take the last one with it.

    Raises:
        DataError: on all ranks; the last checkpoint or a split is damaged.
    """
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
            networks,
            run.config,
            run.data.tests,
            normalise,
            precision,
            radii_of(state),
            consensus,
            before_each,
            with_intervals=True,
        )
        tested[choice] = {"step": step, "splits": figures}
    return tested, {}
