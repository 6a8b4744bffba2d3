"""BiasCon (Hong and Yang, NeurIPS 2021): positives are of the same class and of another bias.

Checked against the authors' public code, grayhong/bias-contrastive-learning. Their objective is
0.01 · CE + BiasCon, or 0.01 · BiasBal + BiasCon; CE is on a batch of its own, without the
augmentations of the views.
"""

from __future__ import annotations

from torch import Tensor

from rebias_dist.methods.biasbal import count_pairs
from rebias_dist.methods.contrastive import same, weighted_contrast
from rebias_dist.objectives import Rows

TEMPERATURE = 0.07
"""T of the authors."""
CE_WEIGHT = 0.01
"""The authors' weight of the cross-entropy beside BiasCon and SoftCon."""


def biascon(own: Rows, all: Rows, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return BiasCon, row-parallel: :func:`.weighted_contrast`, W_ij = [y_i = y_j][b_i ≠ b_j].

    The other views of the anchor's own sample have its bias, so they are no positives; like all
    other samples they are in the denominator.

    Args:
        own: the anchors, with ``labels`` and ``bias``.
        all: the global batch.
        temperature: T.
    """
    positive = same(own, all, "labels") & ~same(own, all, "bias")
    return weighted_contrast(own, all, positive, temperature)


def sampling_weights(labels: Tensor, bias: Tensor, ratio: float) -> Tensor:
    """Return the weights with which the loader of the views draws the training samples.

    ``1 / p(b|y)``, at most ``ratio`` times the smallest of them. The authors draw with
    replacement; their ratio is 10 on Biased-MNIST and UTKFace, 30 or 50 on CelebA.

    Args:
        labels: ``(N,)`` int64, of the training set.
        bias: ``(N,)`` int64, of the training set.
        ratio: 1 or more; 1 draws all samples alike.

    Returns:
        ``(N,)`` float64.

    Raises:
        ValueError: ``ratio`` is below 1.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio}; it must be 1 or more")
    counts = count_pairs(labels, bias, int(labels.max()) + 1, int(bias.max()) + 1)
    of_class = counts.sum(0)
    weights = of_class[labels] / counts[bias, labels]
    return weights.clamp(max=ratio * weights.min())
