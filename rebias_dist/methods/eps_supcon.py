"""eps-SupCon (Barbano et al., ICLR 2023): SupCon with a margin.

Checked against the authors' public code, EIDOSlab/unbiased-contrastive-learning; it departs from
the paper as :mod:`~rebias_dist.methods.eps_supinfonce` says.
"""

from __future__ import annotations

import math

from torch import Tensor

from rebias_dist.methods.contrastive import mean_over_anchors, same, scores
from rebias_dist.methods.eps_supinfonce import BASE_TEMPERATURE, TEMPERATURE
from rebias_dist.objectives import Rows


def eps_supcon(
    own: Rows, all: Rows, *, epsilon: float = 0.0, temperature: float = TEMPERATURE
) -> Tensor:
    """Return eps-SupCon, row-parallel; ω = exp(-ε).

    ``-(T/0.07) mean_i mean_{j∈P_i} [ A_ij - log(ω Σ_{P_i} exp A + Σ_{N_i} exp A + 1e-6) ]``, with
    the symbols of :func:`~rebias_dist.methods.eps_supinfonce.eps_supinfonce`; an anchor without
    positives adds 0.

    Args:
        own: the anchors, with ``labels``.
        all: the global batch.
        epsilon: ε, the margin.
        temperature: T.
    """
    found = scores(own, all, temperature)
    positive = found.tile(same(own, all, "labels"))
    factor = math.exp(-epsilon) * positive + found.tile(~same(own, all, "labels"))
    denominator = (found.exponentials * factor).sum(1, keepdim=True) + 1e-6
    each = found.shifted - denominator.log()
    terms = (positive * each).sum(1) / positive.sum(1).clamp(min=1)
    return -(temperature / BASE_TEMPERATURE) * mean_over_anchors(terms, all)
