"""Code of all contrastive methods: scores of pairs of views, and weighted mean log-ratios.

The functions are row-parallel: ``function(own, all, …)`` is the sum of the terms of the anchors
in ``own``, divided by the number of anchors of the global batch ``all``. This is the form that
:func:`~rebias_dist.objectives.coupled_by_rows` takes. ``own.features`` and ``all.features`` hold
one set of features for each of the V views, so there are V·N anchors. No function normalises the
features: with unit rows the score of a pair is its cosine over the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rebias_dist.methods.base import Batch
from rebias_dist.objectives import Rows


@dataclass(frozen=True)
class Scores:
    """The scores of V·n anchors against all V·N views, both view by view."""

    shifted: Tensor
    """``A_ij = S_ij - max_j S_ij`` with ``S = X Xᵀ / T``; the maximum is a constant for autograd.

    It is over the whole row, j = i included. The constants inside the logarithms of the methods
    are therefore relative to the anchor's score with itself, if that is the largest.
    """
    exponentials: Tensor
    """``exp(A_ij)``"""
    others: Tensor
    """bool: false only where a view meets itself."""

    def tile(self, pairs: Tensor) -> Tensor:
        """Return ``(n, N)`` values of pairs of samples for their pairs of views, 0 for itself."""
        (n, N), (rows, columns) = pairs.shape, self.shifted.shape
        return pairs.to(self.shifted.dtype).repeat(rows // n, columns // N) * self.others


def scores(own: Rows, all: Rows, temperature: float) -> Scores:
    """Return the scores of the views in ``own`` against those in ``all``."""
    anchors, views = torch.cat(own.features), torch.cat(all.features)
    similarity = anchors @ views.T / temperature
    shifted = similarity - similarity.detach().amax(1, keepdim=True)
    n = len(all.index)
    offsets = range(0, len(own.features) * n, n)
    places = torch.cat([own.index + offset for offset in offsets])
    others = places[:, None] != torch.arange(len(views), device=views.device)
    return Scores(shifted, shifted.exp(), others)


def same(own: Rows, all: Rows, name: str) -> Tensor:
    """Return ``(n, N)`` bool: whether two samples share the value ``name``."""
    return own.samples[name][:, None] == all.samples[name]


def mean_over_anchors(terms: Tensor, all: Rows) -> Tensor:
    """Return the sum of the anchors' terms over the number of anchors of the global batch."""
    return terms.sum() / (len(all.features) * len(all.index))


def weighted_contrast(own: Rows, all: Rows, weights: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss with weighted positives, of BiasCon and SoftCon.

    ``-mean_i [ Σ_j W_ij · lp_ij / m_i ]``, with
    ``lp_ij = A_ij - log(Σ_{k≠i} exp A_ik + 1e-9)`` and ``m_i = Σ_j W_ij``, or 1 where that is 0:
    an anchor without positives adds 0, but counts in the mean. The 1e-9 is the authors' (Hong and
    Yang, NeurIPS 2021, public code).

    Args:
        own: the anchors.
        all: the global batch.
        weights: ``(n, N)``, of pairs of samples; alike for all pairs of their views, but 0 where
            a view meets itself.
        temperature: T.
    """
    found = scores(own, all, temperature)
    tiled = found.tile(weights)
    denominator = (found.exponentials * found.others).sum(1, keepdim=True) + 1e-9
    total = tiled.sum(1)
    total = torch.where(total == 0, 1, total)
    terms = (tiled * (found.shifted - denominator.log())).sum(1) / total
    return -mean_over_anchors(terms, all)


def of_views(rows: Rows, batch: Batch) -> Rows:
    """Return rows with a set of unit features for each view, and the labels and bias labels.

    Args:
        rows: their first features hold the views side by side, ``(n, V·d)``.
        batch: the global batch.
    """
    features = tuple(normalize(x, dim=1) for x in rows.features[0].chunk(batch.views, dim=1))
    samples = {"labels": batch.labels[rows.index], "bias": batch.bias[rows.index]}
    return Rows(features, samples, rows.index)
