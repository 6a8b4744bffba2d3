"""EnD (Tartaglione, Barbano and Grangetto, CVPR 2021): entangle classes, disentangle biases.

Checked against the authors' public code, EIDOSlab/entangling-disentangling-bias. The features are
to have unit rows, and the classifier takes the same normalised features. The objective is
CE + α · disentangle + β · entangle.
"""

from __future__ import annotations

import torch
from torch import Tensor


def disentangle(features: Tensor, bias: Tensor) -> Tensor:
    """Return how much the samples of a bias agree, in the whole batch.

    ``(Σ_b | Σ_{i>j, b_i=b_j=b} G_ij |) / M``, with ``G = F Fᵀ`` clamped to [-1, 1] and M the
    number of such pairs of all biases; 0 if there are none. Signs cancel inside a bias.

    Args:
        features: ``(N, d)`` with unit rows.
        bias: ``(N,)``
    """
    pairs = _earlier(features) & (bias[:, None] == bias)
    groups, of_sample = torch.unique(bias, return_inverse=True)
    rows = (_cosines(features) * pairs).sum(1)
    sums = (rows[:, None] * torch.nn.functional.one_hot(of_sample, len(groups))).sum(0)
    return sums.abs().sum() / pairs.sum().clamp(min=1)


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
