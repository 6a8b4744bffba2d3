"""SoftCon (Hong and Yang, NeurIPS 2021): soft positives from a bias network, without bias labels.

Checked against the authors' public code, grayhong/bias-contrastive-learning. Their objective is
0.01 · CE + SoftCon (ImageNet-9: CE + SoftCon).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rebias_dist.methods.base import Batch, Method, Output, Term, cross_entropies
from rebias_dist.methods.contrastive import of_views, same, weighted_contrast
from rebias_dist.methods.options import SoftConOptions
from rebias_dist.objectives import Features, Rows, coupled_by_rows


class SoftCon(Method):
    """f minimises w · CE + SoftCon with each fixed g as the bias network.

    The CE is of the same samples and views. The authors take another batch for it, without
    augmentation. With two views, a sample's bias features are the mean of the views' unit rows.
    """

    config: SoftConOptions

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return SoftCon for each g."""

        def function(own: Rows, all: Rows) -> Tensor:
            return softcon(
                _with_bias_features(own, batch),
                _with_bias_features(all, batch),
                temperature=self.config.temperature,
            )

        return [
            Term(f"softcon_g{index}", 1.0, coupled_by_rows(function, f, g, check=False))
            for index, g in enumerate(gs)
        ]

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE with its weight."""
        return {"ce": self.config.ce_weight * cross_entropies(f, batch)}


def _with_bias_features(rows: Rows, batch: Batch) -> Rows:
    found = of_views(rows, batch)
    of_view = [normalize(h.double(), dim=1) for h in rows.features[1].chunk(batch.views, dim=1)]
    bias_features = torch.stack(of_view).mean(0)
    return Rows(found.features, {**found.samples, "bias_features": bias_features}, rows.index)


def softcon(own: Rows, all: Rows, *, temperature: float = 0.07) -> Tensor:
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
