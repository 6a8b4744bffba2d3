"""Every network on every split, each sample once, with the same figures on any layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rebias_dist.assemble import Normalise, eval_transform
from rebias_dist.config import Config
from rebias_dist.data import EvalLoader, ShardDataset, Transform
from rebias_dist.errors import DataError, NonFiniteError
from rebias_dist.minimax import Radii
from rebias_dist.objectives import gather_features, hsic, median_distance
from rebias_dist.runtime import checkpoint
from rebias_dist.runtime.consensus import Consensus
from rebias_dist.runtime.precision import Precision
from rebias_dist.runtime.snapshot import Snapshot, radii_of


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
) -> dict[str, Any]:
    """Evaluate networks (``f``, ``g0`` …) on a split, in evaluation mode; a collective.

    The contents of a batch do not depend on the ranks, and accuracies are made of counts, so
    that every layout finds the same ones; HSIC is the same to rounding.

    Returns:
        ``samples``; ``hsic``, one value for each g (None without f or g), of the features of
        the first ``hsic_samples`` samples with the kernel radii ``radii``, or where these are
        None with the medians of these features; ``networks``: for each its ``accuracy``,
        ``standard_error`` (binomial), ``correct``, ``confusion`` (label × prediction),
        ``bias_correct`` and ``bias_count`` (label × bias; samples without bias left out).
    """
    manifest = dataset.manifest
    classes = len(manifest.classes)
    biases = max(int(dataset.bias.max(initial=-1)) + 1, 0)
    counts = {
        name: {
            "confusion": torch.zeros(classes, classes, dtype=torch.int64),
            "bias_correct": torch.zeros(classes, biases, dtype=torch.int64),
        }
        for name in networks
    }
    bias_count = torch.zeros(classes, biases, dtype=torch.int64)
    rows: dict[str, list[Tensor]] = {name: [] for name in networks}
    loader = EvalLoader(
        dataset,
        batch=batch,
        rank=consensus.rank,
        world_size=consensus.world_size,
        transform=transform,
        workers=workers,
    )

    training = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        with consensus.together(), torch.no_grad():
            for found in loader:
                labels, bias = found.labels, found.bias
                known = bias >= 0
                _count(bias_count, labels[known], bias[known])
                images = normalise(found.images.to(precision.device))
                for name, network in networks.items():
                    with precision.autocast():
                        logits, features = network(images)
                    predicted = logits.argmax(1).cpu()
                    right = predicted == labels
                    _count(counts[name]["confusion"], labels, predicted)
                    _count(counts[name]["bias_correct"], labels[known & right], bias[known & right])
                    rows[name].append(features[found.samples.to(features.device) < hsic_samples])
    finally:
        for name, network in networks.items():
            network.train(training[name])

    _reduce(
        [bias_count, *(c for of_network in counts.values() for c in of_network.values())], consensus
    )
    return {
        "samples": manifest.samples,
        "hsic": _feature_hsic(rows, radii, precision.device, consensus),
        "networks": {
            name: _figures(c["confusion"], c["bias_correct"], bias_count)
            for name, c in counts.items()
        },
    }


def _count(table: Tensor, row: Tensor, column: Tensor) -> None:
    table.index_put_((row, column), torch.ones_like(row), accumulate=True)


def _reduce(tables: list[Tensor], consensus: Consensus) -> None:
    if consensus.world_size == 1:
        return
    flat = torch.cat([table.flatten() for table in tables])
    dist.all_reduce(flat, group=consensus.group)
    for table in tables:
        table.copy_(flat[: table.numel()].view_as(table))
        flat = flat[table.numel() :]


def _figures(confusion: Tensor, bias_correct: Tensor, bias_count: Tensor) -> dict[str, Any]:
    samples, correct = int(confusion.sum()), int(confusion.diagonal().sum())
    accuracy = correct / samples
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / samples),
        "correct": correct,
        "confusion": confusion.tolist(),
        "bias_correct": bias_correct.tolist(),
        "bias_count": bias_count.tolist(),
    }


def _feature_hsic(
    rows: dict[str, list[Tensor]],
    radii: Radii | None,
    device: torch.device,
    consensus: Consensus,
) -> list[float | None]:
    gs = [name for name in rows if name != "f"]
    if "f" not in rows or not gs:
        return [None for _ in gs]
    # A rank without batches has no features, but takes part with none of the others' kind.
    mine = {name: [r[0].shape[1], str(r[0].dtype)] for name, r in rows.items() if r}
    kind = next(known for known in consensus.gather(mine) if known)
    joined = {}
    for name, parts in rows.items():
        width, dtype = kind[name]
        like = {"dtype": getattr(torch, dtype.removeprefix("torch.")), "device": device}
        joined[name] = torch.cat(parts) if parts else torch.zeros(0, width, **like)
    if sum(consensus.gather(len(joined["f"]))) < 4:
        return [None for _ in gs]
    features = {name: gather_features(r) for name, r in joined.items()}
    values: list[float | None] = []
    for index, g in enumerate(gs):
        try:
            sigma_f = radii.f if radii else median_distance([joined["f"]], name="f")
            sigma_g = radii.g[index] if radii else median_distance([joined[g]], name=g)
            values.append(float(hsic(features["f"], features[g], sigma_f, sigma_g)))
        except (DataError, NonFiniteError):  # collapsed or overflowing features have none
            values.append(None)
    return values


def evaluate_splits(
    networks: Mapping[str, nn.Module],
    config: Config,
    data: Mapping[str, ShardDataset],
    normalise: Normalise,
    precision: Precision,
    radii: Radii | None,
    consensus: Consensus,
    before_each: Callable[[], None] = lambda: None,
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
) -> dict[str, Any]:
    """Evaluate a run's last and best checkpoint on its test splits; a collective.

    The networks are those of the best checkpoint afterwards, and may be at any time on the way.
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
        with consensus.together():
            state = checkpoint.load(folder, step)
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
        )
        tested[choice] = {"step": step, "splits": figures}
    return tested
