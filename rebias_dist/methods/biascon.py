"""BiasCon (Hong and Yang, NeurIPS 2021): positives are of the same class and of another bias.

Checked against the authors' public code, grayhong/bias-contrastive-learning. Their objective is
0.01 · CE + BiasCon, or 0.01 · BiasBal + BiasCon; CE is on a batch of its own, without the
augmentations of the views.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.methods.base import Batch, Method, Output, Term, TrainingSet, wide
from rebias_dist.methods.bias_balance import balanced_logits, prior_of
from rebias_dist.methods.contrastive import of_views, same, weighted_contrast
from rebias_dist.methods.options import BiasConOptions
from rebias_dist.objectives import Features, Rows, coupled_by_rows


class BiasCon(Method):
    """f minimises w · CE + BiasCon, or w · BiasBal + BiasCon.

    The CE is of the same samples and views. The authors take another batch for it, without
    augmentation.
    """

    config: BiasConOptions

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Count the training samples of each class with each bias label, for BiasBal."""
        self.prior = prior_of(training) if self.config.bias_balance else None

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return BiasCon."""

        def function(own: Rows, all: Rows) -> Tensor:
            return biascon(
                of_views(own, batch), of_views(all, batch), temperature=self.config.temperature
            )

        return [Term("biascon", 1.0, coupled_by_rows(function, f, check=False))]

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE with its weight."""
        logits = wide(f.logits)
        if self.prior is not None:
            logits = balanced_logits(logits, batch.bias, self.prior)
        losses = cross_entropy(logits, batch.labels, reduction="none")
        return {"ce": self.config.ce_weight * losses}


def biascon(own: Rows, all: Rows, *, temperature: float = 0.07) -> Tensor:
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
