"""SoftCon (Hong and Yang, NeurIPS 2021): soft positives from a bias network, without bias labels.

Checked against the authors' public code, grayhong/bias-contrastive-learning. Their objective is
0.01 · CE + SoftCon (ImageNet-9: CE + SoftCon).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rebias_dist.methods.biascon import TEMPERATURE
from rebias_dist.methods.contrastive import same, weighted_contrast
from rebias_dist.objectives import Rows


def softcon(own: Rows, all: Rows, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return SoftCon, row-parallel: :func:`.weighted_contrast` with soft positives.

    ``W_ij = [y_i = y_j] · (1 - cos(h_i, h_j))``, h the bias network's features, through which no
    gradient returns.

    The authors' code leaves rounding noise where the cosine is 1. If all positives of an anchor
    are such, the noise is scaled up to weights that sum to 1. Here the cosine is computed in
    float64, and differences from 1 that are within its rounding are exactly 0.

    Args:
        own: the anchors, with ``labels`` and ``bias_features`` ``(n, width)``.
        all: the global batch.
        temperature: T.
    """
    h, all_h = (
        normalize(rows.samples["bias_features"].detach().double(), dim=1) for rows in (own, all)
    )
    distance = 1 - h @ all_h.T
    rounding = 4 * h.shape[1] * torch.finfo(torch.float64).eps
    distance = torch.where(distance > rounding, distance, 0)
    return weighted_contrast(own, all, distance * same(own, all, "labels"), temperature)
