"""EnD (Tartaglione, Barbano and Grangetto, CVPR 2021): entangle classes, disentangle biases.

Checked against the authors' public code, EIDOSlab/entangling-disentangling-bias. The features are
to have unit rows. The objective is
CE + α · disentangle + β · entangle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rebias_dist.methods.base import Batch, Method, Term
from rebias_dist.methods.options import EnDOptions
from rebias_dist.objectives import Features, coupled


class EnD(Method):
    """f minimises CE + α · disentangle + β · entangle of its unit features.

    The authors' classifier takes the unit features, too; here it takes f's features as they are.
    """

    config: EnDOptions

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return both terms; a weight of 0 leaves its term out."""

        def apart(features: Tensor) -> Tensor:
            return disentangle(normalize(features), batch.bias)

        def together(features: Tensor) -> Tensor:
            return entangle(normalize(features), batch.labels, batch.bias)

        return [
            Term(name, weight, coupled(function, f, check=False))
            for name, weight, function in (
                ("disentangle", self.config.disentangle_weight, apart),
                ("entangle", self.config.entangle_weight, together),
            )
            if weight
        ]


def disentangle(features: Tensor, bias: Tensor) -> Tensor:
    """Return how much the samples of a bias agree, in the whole batch.

    ``(Σ_b | Σ_{i>j, b_i=b_j=b} G_ij |) / M``, with ``G = F Fᵀ`` clamped to [-1, 1] and M the
    number of such pairs of all biases; 0 if there are none. Signs cancel inside a bias.

    Args:
        features: ``(N, d)`` with unit rows.
        bias: ``(N,)``
    """
    same = bias[:, None] == bias
    pairs = _earlier(features) & same
    rows = (_cosines(features) * pairs).sum(1)
    # Each sample has an equal part of the sum of its bias, so each bias counts once. For a list
    # of the biases the host would have to wait.
    sums = (rows * same).sum(1).abs() / same.sum(1)
    return sums.sum() / pairs.sum().clamp(min=1)


def entangle(features: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    """Return how far apart a class with different biases is, in the whole batch.

    One minus the mean of ``(1 + G_ij) / 2`` over all pairs of the same class and different
    biases, from 0 to 1; 0 if there are none.

    The authors' code counts only those pairs whose later sample in the batch has the smaller
    bias label, so its value depends on the order of the batch. This one counts all of them.

    Args:
        features: ``(N, d)`` with unit rows.
        labels: ``(N,)``
        bias: ``(N,)``
    """
    pairs = _earlier(features) & (labels[:, None] == labels) & (bias[:, None] != bias)
    count = pairs.sum()
    away = (1 - _cosines(features)) / 2
    return (away * pairs).sum() / count.clamp(min=1)


def _cosines(features: Tensor) -> Tensor:
    return (features @ features.T).clamp(-1, 1)


def _earlier(features: Tensor) -> Tensor:
    """Return ``(N, N)`` bool: each pair once, i > j."""
    n = len(features)
    return torch.ones(n, n, dtype=torch.bool, device=features.device).tril(-1)
