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
from rebias_dist.data.batch import MicroBatch
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
        InterruptedRun: on all ranks, if one of them was asked to stop.
    """
    networks, consensus = evaluator.networks, evaluator.consensus
    if len(dataset) == 0:
        raise DataError(f"{dataset.place}: has no samples to evaluate on")
    loader = EvalLoader(
        dataset,
        batch=evaluator.batch,
        rank=consensus.rank,
        world_size=consensus.world_size,
        transform=evaluator.transform,
        workers=evaluator.workers,
        pinned=evaluator.precision.device.type == "cuda",
    )
    share = _Share(evaluator, len(dataset), columns)
    rounds = -(-loader.batches // consensus.world_size)
    what = f"evaluation on {dataset.manifest.split}, batches"
    told_of = told(what, rounds, aloud=consensus.rank == 0)
    training = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        with torch.no_grad(), told_of as work:
            batches = iter(loader)
            for _ in range(rounds):
                # In each round, so that a stop or a fault of one rank ends all without delay.
                with consensus.together():
                    batch = next(batches, None)
                    if batch is not None:  # in the last round some ranks have none
                        share.add(batch)
                work.done += 1
    finally:
        for name, network in networks.items():
            network.train(training[name])
    return share.joined()


class _Share:
    """The predictions for this rank's batches.

    Args:
        evaluator: the networks and the settings.
        n: samples of the split.
        columns: see :func:`predict`.
    """

    def __init__(self, evaluator: Evaluator, n: int, columns: Sequence[int] | None) -> None:
        self._evaluator, self._n, self._columns = evaluator, n, columns
        names = evaluator.networks
        self._predicted = {name: torch.zeros(n, dtype=torch.int64) for name in names}
        self._confidence = {name: torch.zeros(n, dtype=torch.float64) for name in names}
        self._rows: dict[str, list[Tensor]] = {name: [] for name in names}
        self._kept: list[Tensor] = []

    def add(self, batch: MicroBatch) -> None:
        """Run the networks on a batch."""
        evaluator = self._evaluator
        images = evaluator.normalise(batch.images.to(evaluator.precision.device))
        first = batch.samples < evaluator.hsic_samples
        self._kept.append(batch.samples[first])
        for name, network in evaluator.networks.items():
            with evaluator.precision.autocast():
                logits, features = network(images)
            logits = logits.double().cpu()
            if self._columns is not None:
                logits = logits[:, self._columns]
            # Not the largest probability, because two of them may round to one number.
            best = logits.argmax(1)
            self._predicted[name][batch.samples] = best
            chosen = logits.softmax(1).gather(1, best[:, None])[:, 0]
            self._confidence[name][batch.samples] = chosen
            self._rows[name].append(features[first.to(features.device)].cpu())

    def joined(self) -> Predictions:
        """Return the predictions of all ranks; a collective."""
        consensus = self._evaluator.consensus
        for values in (*self._predicted.values(), *self._confidence.values()):
            _sum(values, consensus)
        m = min(self._n, self._evaluator.hsic_samples)
        return Predictions(
            {name: values.numpy() for name, values in self._predicted.items()},
            {name: values.numpy() for name, values in self._confidence.items()},
            _gathered(self._rows, self._kept, m, consensus),
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
