"""What methods see of the samples of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.base import Batch
from rebias_dist.methods.radii import Radii
from rebias_dist.objectives import gather_rows


def known_of(
    batches: list[MicroBatch], weights: Tensor | None, step: int, views: int
) -> list[Batch]:
    """Return what methods see of this rank's micro-batches: a row for each view.

    Args:
        batches: this rank's micro-batches.
        weights: of this rank's samples, in their order; None: there are none.
        step: of the game.
        views: V.
    """
    parts = [None] * len(batches) if weights is None else weights.chunk(len(batches))
    return [
        Batch(
            mb.labels.repeat(views),
            mb.bias.repeat(views),
            mb.samples.repeat(views),
            step,
            views,
            None if part is None else part.repeat(views),
        )
        for mb, part in zip(batches, parts, strict=True)
    ]


def whole_of(
    batches: list[MicroBatch],
    counts: Sequence[int] | None,
    step: int,
    views: int,
    radii: Radii | None,
) -> Batch:
    """Return what methods see of the global batch; a collective.

    Args:
        batches: this rank's micro-batches.
        counts: samples of each rank; None: the method needs no samples of other ranks, and this
            is no collective.
        step: of the game.
        views: V.
        radii: the kernel radii.
    """
    numbers = torch.cat([torch.stack([b.labels, b.bias, b.samples], dim=1) for b in batches])
    if counts is not None:
        numbers = gather_rows(numbers, counts)
    labels, bias, samples = numbers.unbind(1)
    return Batch(labels, bias, samples, step, views, None, radii)
