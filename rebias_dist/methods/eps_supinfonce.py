"""eps-SupInfoNCE (Barbano et al., ICLR 2023): contrast by class with a margin.

Checked against the authors' public code, EIDOSlab/unbiased-contrastive-learning. It departs from
the paper (equations as numbered in the submission): equation 4 sums over the positives, the code
averages over them and then over the anchors; the additive ε of equation 5 is missing; and the
factor T/0.07 is not in the paper. The
margin acts on ``s/T`` and not on ``s``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rebias_dist.methods.contrastive import mean_over_anchors, same, scores
from rebias_dist.objectives import Rows

TEMPERATURE = 0.1
"""T of the authors' script."""
BASE_TEMPERATURE = 0.07
"""The authors' losses are multiplied by T / 0.07."""


def eps_supinfonce(
    own: Rows,
    all: Rows,
    *,
    epsilon: float = 0.0,
    temperature: float = TEMPERATURE,
    form: Literal["out", "in"] = "out",
) -> Tensor:
    """Return eps-SupInfoNCE, row-parallel; ω = exp(-ε).

    Positives P_i are all views of the anchor's class but the anchor itself, negatives N_i those
    of other classes. A is the shifted score of :class:`.Scores`.

    * out: ``-(T/0.07) mean_i mean_{j∈P_i} [ A_ij - log(ω exp A_ij + Σ_{N_i} exp A_ik + 1e-6) ]``;
      an anchor without positives adds 0.
    * in: ``-(T/0.07) mean_i [ log Σ_{P_i} exp A - log((ω/|P_i|) Σ_{P_i} exp A + Σ_{N_i} exp A) ]``;
      an anchor without positives makes the value infinite, as in the authors' code (NaN if it has
      no negatives either).

    Args:
        own: the anchors, with ``labels``.
        all: the global batch.
        epsilon: ε, the margin.
        temperature: T.
        form: where the mean over positives is, outside or inside the logarithm.
    """
    found = scores(own, all, temperature)
    omega, positive = math.exp(-epsilon), found.tile(same(own, all, "labels"))
    negatives = (found.exponentials * found.tile(~same(own, all, "labels"))).sum(1)
    count = positive.sum(1).clamp(min=1)
    if form == "out":
        denominator = omega * found.exponentials + negatives[:, None] + 1e-6
        each = found.shifted - denominator.log()
        terms = (positive * each).sum(1) / count
    else:
        positives = (found.exponentials * positive).sum(1)
        terms = positives.log() - torch.log(omega / count * positives + negatives)
    return -(temperature / BASE_TEMPERATURE) * mean_over_anchors(terms, all)
