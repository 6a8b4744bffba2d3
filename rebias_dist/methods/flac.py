"""FLAC (Sarridis et al., 2023): similarities that a bias network could not have predicted.

Checked against the authors' public code, gsarridis/FLAC; its fork in vb-mitigator normalises the
features inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rebias_dist.methods.base import Batch, Method, Output, Term, cross_entropies
from rebias_dist.methods.options import FLACOptions
from rebias_dist.objectives import Features, coupled


class FLAC(Method):
    """f minimises w · CE + α · FLAC with each fixed g as the bias network; unit features."""

    config: FLACOptions

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return FLAC for each g."""

        def function(features: Tensor, bias_features: Tensor) -> Tensor:
            return flac(
                features,
                bias_features,
                batch.labels,
                exponent=self.config.distance_exponent,
                normalised=True,
            )

        weight = self.config.flac_weight
        return [
            Term(f"flac_g{index}", weight, coupled(function, f, g, check=False))
            for index, g in enumerate(gs)
        ]

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE with its weight."""
        return {"ce": self.config.ce_weight * cross_entropies(f, batch)}


def flac(
    features: Tensor,
    bias_features: Tensor,
    labels: Tensor,
    *,
    exponent: float = 0.5,
    normalised: bool = False,
) -> Tensor:
    """Return FLAC of the whole batch.

    ``D_ij = sqrt(max(|a_i - a_j|², 0) + 1e-6)``; similarities ``s = 1 / (1 + D(h)^d)`` and
    ``t = 1 / (1 + D(f)^d)``. With the threshold ``(max s + min s) / 2`` over the whole matrix,
    the selected ordered pairs are those of the same class below it and those of different classes
    above it. Row by row over the selected pairs, ``P = (1 - s) / (Σ (1 - s) + 1e-7)`` and
    ``Q = t / (Σ t + 1e-7)``. The value is the mean of ``(P - Q)(log P - log Q)`` over all
    selected pairs, and 0 if there are none: a row counts by its number of pairs.

    The bias network's side is a distance and the model's side a similarity: pairs that are far
    apart for the bias network are to be close for the model.

    Args:
        features: ``(N, d)``, f of the model.
        bias_features: ``(N, d')``, h of the bias network; no gradient returns through them.
        labels: ``(N,)``
        exponent: d; the authors' is 0.5, on UTKFace 1.
        normalised: make the rows of both unit vectors first. The authors' networks do so.
    """
    bias_features = bias_features.detach()
    if normalised:
        features, bias_features = normalize(features), normalize(bias_features)
    s, t = _similarity(bias_features, exponent), _similarity(features, exponent)
    threshold = (s.amax() + s.amin()) / 2
    same_class = labels[:, None] == labels
    selected = torch.where(same_class, s < threshold, s > threshold)
    p, q = (_share(values, selected) for values in (1 - s, t))
    divergence = (p - q) * (p.log() - q.log())
    return divergence.sum() / selected.sum().clamp(min=1)


def _similarity(x: Tensor, exponent: float) -> Tensor:
    squares = (x * x).sum(1)
    squared = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
    return 1 / (1 + (squared + 1e-6).sqrt() ** exponent)


def _share(values: Tensor, selected: Tensor) -> Tensor:
    """Return the values over their row's sum; 1 where a pair is not selected."""
    shares = values / ((values * selected).sum(1, keepdim=True) + 1e-7)
    return torch.where(selected, shares, 1)
