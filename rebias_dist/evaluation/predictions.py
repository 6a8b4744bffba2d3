"""What networks say of every sample of a split, each sample once, the same on any layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rebias_dist.data import EvalLoader, ShardDataset
from rebias_dist.errors import DataError
from rebias_dist.evaluation.evaluator import Evaluator
from rebias_dist.ranks.consensus import Consensus


@dataclass(frozen=True)
class Predictions:
    """What networks (``f``, ``g0`` …) say of the n samples of a split, in the order of its index.

    ``predicted`` (labels of the split, int64 [n]) and ``confidence`` (of the prediction, by
    softmax, float64 [n]) by network; ``features`` those of the first samples, ``[m, d]``.
    """

    labels: NDArray[np.int64]
    bias: NDArray[np.int64]
    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float64]]
    features: dict[str, Tensor]


def predict(
    evaluator: Evaluator, dataset: ShardDataset, columns: Sequence[int] | None = None
) -> Predictions:
    """Ask the networks, in evaluation mode; a collective.

    The contents of a batch do not depend on the ranks, so neither do the predictions. The
    networks are in the mode they were in afterwards.

    Args:
        evaluator: the networks, and how samples reach them.
        dataset: the split.
        columns: for networks of more classes than the split has, the output that stands for
            each class of the split; the others are left out before the largest is taken.

    Raises:
        DataError: on all ranks; a sample is damaged, or there is none.
    """
    networks, consensus = evaluator.networks, evaluator.consensus
    precision = evaluator.precision
    n = len(dataset)
    if n == 0:
        raise DataError(f"{dataset.folder}: has no samples to evaluate on")
    predicted = {name: torch.zeros(n, dtype=torch.int64) for name in networks}
    confidence = {name: torch.zeros(n, dtype=torch.float64) for name in networks}
    rows: dict[str, list[Tensor]] = {name: [] for name in networks}
    kept: list[Tensor] = []
    loader = EvalLoader(
        dataset,
        batch=evaluator.batch,
        rank=consensus.rank,
        world_size=consensus.world_size,
        transform=evaluator.transform,
        workers=evaluator.workers,
    )
    training = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        with consensus.together(), torch.no_grad():
            for found in loader:
                images = evaluator.normalise(found.images.to(precision.device))
                first = found.samples < evaluator.hsic_samples
                kept.append(found.samples[first])
                for name, network in networks.items():
                    with precision.autocast():
                        logits, features = network(images)
                    logits = logits.double().cpu()
                    if columns is not None:
                        logits = logits[:, columns]
                    # Of the logits: two probabilities may round to the same number.
                    best = logits.argmax(1)
                    predicted[name][found.samples] = best
                    chosen = logits.softmax(1).gather(1, best[:, None])[:, 0]
                    confidence[name][found.samples] = chosen
                    rows[name].append(features[first.to(features.device)].cpu())
    finally:
        for name, network in networks.items():
            network.train(training[name])
    for values in (*predicted.values(), *confidence.values()):
        _sum(values, consensus)
    return Predictions(
        dataset.labels.astype(np.int64),
        dataset.bias.astype(np.int64),
        {name: values.numpy() for name, values in predicted.items()},
        {name: values.numpy() for name, values in confidence.items()},
        _gathered(rows, kept, min(n, evaluator.hsic_samples), consensus),
    )


def _sum(values: Tensor, consensus: Consensus) -> None:
    """Add the ranks' values; each entry is one rank's and zero on the others, so it is exact."""
    if consensus.world_size > 1:
        dist.all_reduce(values, group=consensus.group)


def _gathered(
    rows: Mapping[str, list[Tensor]], kept: list[Tensor], m: int, consensus: Consensus
) -> dict[str, Tensor]:
    """Return the features of all ranks in the order of the samples."""
    # A rank without batches does not know how wide features are, nor their kind.
    mine = {
        name: [parts[0].shape[1], parts[0].dtype == torch.float64]
        for name, parts in rows.items()
        if parts
    }
    kinds: dict[str, list[Any]] = next((found for found in consensus.gather(mine) if found), {})
    features = {}
    for name, parts in rows.items():
        width, double = kinds[name]
        all_rows = torch.zeros(m, width, dtype=torch.float64 if double else torch.float32)
        if parts:
            all_rows[torch.cat(kept)] = torch.cat(parts).to(all_rows.dtype)
        _sum(all_rows, consensus)
        features[name] = all_rows
    return features
