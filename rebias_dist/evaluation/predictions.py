"""The networks' predictions for every sample of a split: each sample once, on any layout."""

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
from rebias_dist.ranks.waits import told


@dataclass(frozen=True)
class Predictions:
    """Predictions of networks (``f``, ``g0`` …) for a split's n samples, in the order of its index.

    By network: ``predicted``, labels of the split, int64 [n]; ``confidence``, the softmax
    probability of the prediction, float64 [n]; ``features`` of the first m samples, ``[m, d]``.
    """

    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float64]]
    features: dict[str, Tensor]


def predict(
    evaluator: Evaluator, dataset: ShardDataset, columns: Sequence[int] | None = None
) -> Predictions:
    """Run the networks in evaluation mode on a split; a collective.

    The content of a batch does not depend on the number of ranks, so the predictions do not
    either. Afterwards the networks are in the same mode as before.

    Args:
        evaluator: the networks and the settings.
        dataset: the split.
        columns: for networks with more classes than the split, the output for each class of the
            split; the other outputs are left out before the largest is taken.

    Raises:
        DataError: on all ranks, if a sample is damaged or there is none.
    """
    networks, consensus = evaluator.networks, evaluator.consensus
    precision = evaluator.precision
    n = len(dataset)
    if n == 0:
        raise DataError(f"{dataset.place}: has no samples to evaluate on")
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
        pinned=precision.device.type == "cuda",
    )
    what = f"evaluation on {dataset.manifest.split}, batches"
    told_of = told(what, len(loader), aloud=consensus.rank == 0)
    training = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        with consensus.together(), torch.no_grad(), told_of as work:
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
                    # Not the largest probability, because two of them may round to one number.
                    best = logits.argmax(1)
                    predicted[name][found.samples] = best
                    chosen = logits.softmax(1).gather(1, best[:, None])[:, 0]
                    confidence[name][found.samples] = chosen
                    rows[name].append(features[first.to(features.device)].cpu())
                work.done += 1
    finally:
        for name, network in networks.items():
            network.train(training[name])
    for values in (*predicted.values(), *confidence.values()):
        _sum(values, consensus)
    return Predictions(
        {name: values.numpy() for name, values in predicted.items()},
        {name: values.numpy() for name, values in confidence.items()},
        _gathered(rows, kept, min(n, evaluator.hsic_samples), consensus),
    )


def _sum(values: Tensor, consensus: Consensus) -> None:
    """Add the ranks' values; exact, because each entry is zero on all ranks but one."""
    if consensus.world_size > 1:
        dist.all_reduce(values, group=consensus.group)


def _gathered(
    rows: Mapping[str, list[Tensor]], kept: list[Tensor], m: int, consensus: Consensus
) -> dict[str, Tensor]:
    """Return the features of all ranks in the order of the samples."""
    # A rank without batches does not know the features' width and dtype.
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
