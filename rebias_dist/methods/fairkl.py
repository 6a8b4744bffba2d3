"""FairKL (Barbano et al., ICLR 2023): similarities inside a class do not depend on the bias.

Checked against the authors' public code, EIDOSlab/unbiased-contrastive-learning. Equations have
the numbers of the submission.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rebias_dist.methods.base import Batch, Method, Output, Term, TrainingSet, wide
from rebias_dist.methods.classifier import linear_classifier
from rebias_dist.methods.contrastive import of_views
from rebias_dist.methods.eps_supcon import eps_supcon
from rebias_dist.methods.eps_supinfonce import eps_supinfonce
from rebias_dist.methods.options import FairKLOptions
from rebias_dist.objectives import Features, Rows, coupled, coupled_by_rows

Form = Literal["authors", "paper"]

_SMALLEST_VARIANCE = 1e-6
"""Keeps the Gaussian divergence finite where all pairs of a set are equally similar."""


class FairKL(Method):
    """f's features minimise eps-SupInfoNCE and R; its classifier minimises CE on them.

    No gradient of the CE reaches the features, as in the authors' code.
    """

    config: FairKLOptions

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Find f's classifier."""
        self.classifier = linear_classifier(networks["f"], training, self.config.name)

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return the contrastive loss and the regulariser."""
        o = self.config

        def contrast(own: Rows, all: Rows) -> Tensor:
            rows = of_views(own, batch), of_views(all, batch)
            if o.contrast == "supcon":
                return eps_supcon(*rows, epsilon=o.epsilon, temperature=o.temperature)
            return eps_supinfonce(
                *rows, epsilon=o.epsilon, temperature=o.temperature, form=o.contrast
            )

        def regulariser(features: Tensor) -> Tensor:
            rows = torch.cat(features.chunk(batch.views, dim=1))
            labels, bias = batch.labels.repeat(batch.views), batch.bias.repeat(batch.views)
            return fairkl(normalize(rows), labels, bias, kld=o.deviation_weight, form=o.form)

        of_contrast, of_regulariser = weights(
            alpha=o.contrast_weight, weight=o.regulariser_weight, form=o.form
        )
        terms = [Term("contrast", of_contrast, coupled_by_rows(contrast, f, check=False))]
        if of_regulariser:
            terms.append(Term("fairkl", of_regulariser, coupled(regulariser, f, check=False)))
        return terms

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE of the classifier, which alone gets its gradient."""
        # In float32, outside of the precision of the networks.
        weight, bias = (wide(p) for p in (self.classifier.weight, self.classifier.bias))
        logits = wide(f.features).detach() @ weight.T + bias
        return {"ce": cross_entropy(logits, batch.labels, reduction="none")}


def fairkl(
    features: Tensor, labels: Tensor, bias: Tensor, *, kld: float = 1.0, form: Form = "authors"
) -> Tensor:
    """Return FairKL's regulariser R of the whole batch.

    S = F Fᵀ. The ordered pairs fall into four sets: pa (same class, same bias), pc (same class,
    other bias), na (other class, same bias) and nc (other class, other bias).

    * authors, their code: ``(μ_pc - μ_pa)² + (μ_na - μ_nc)²
      + kld · [(σ_pa - σ_pc)² + (σ_na - σ_nc)²] - μ_pc + μ_na``. pa has the diagonal. μ is the
      mean of a set's members, 0 if there are none; σ is the standard deviation of all N² entries
      (N² - 1 in the denominator) of S with 0 for those outside the set, so it depends on
      how many pairs the set has. The linear terms are not in the paper.
    * paper, equations 9a-d: ``KL(pa‖pc) + KL(na‖nc)`` of Gaussians with the means and variances
      of the members, ``½ [(σ²_a + (μ_a - μ_c)²) / σ²_c - log(σ²_a / σ²_c) - 1]``. Without the
      diagonal. Ours are two rules that the paper leaves open: a divergence is 0 if one of its
      sets has less than two members, and variances are at least 1e-6.

    Args:
        features: ``(N, d)``, with unit rows.
        labels: ``(N,)``
        bias: ``(N,)``
        kld: weight of the deviations; form authors only.
        form: authors or paper.
    """
    similarity = features @ features.T
    same_class = labels[:, None] == labels
    same_bias = bias[:, None] == bias
    sets = (
        same_class & same_bias,
        same_class & ~same_bias,
        ~same_class & same_bias,
        ~same_class & ~same_bias,
    )
    if form == "paper":
        others = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
        pa, pc, na, nc = (members & others for members in sets)
        return _divergence(similarity, pa, pc) + _divergence(similarity, na, nc)
    mean_pa, mean_pc, mean_na, mean_nc = (_mean(similarity, members) for members in sets)
    value = (mean_pc - mean_pa) ** 2 + (mean_na - mean_nc) ** 2 - mean_pc + mean_na
    if kld:
        pa, pc, na, nc = (_deviation(similarity * members) for members in sets)
        value = value + kld * ((pa - pc) ** 2 + (na - nc) ** 2)
    return value


def weights(*, alpha: float, weight: float, form: Form = "authors") -> tuple[float, float]:
    """Return the weights of the contrastive loss and of R in the objective of the features.

    * authors: ``α² · contrast + λ · R`` if λ is not 0, else ``α · contrast``: their script
      multiplies by α twice.
    * paper, equation 10: ``α · contrast + λ · R``.

    Args:
        alpha: α.
        weight: λ.
        form: authors or paper.
    """
    return (alpha**2 if weight and form == "authors" else alpha), weight


def _mean(similarity: Tensor, members: Tensor) -> Tensor:
    return (similarity * members).sum() / members.sum().clamp(min=1)


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviation of all entries; 0 with gradient 0 where all are equal."""
    variance = values.var()
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)


def _divergence(similarity: Tensor, a: Tensor, c: Tensor) -> Tensor:
    mean_a, mean_c = _mean(similarity, a), _mean(similarity, c)
    variance_a, variance_c = (
        _mean((similarity - mean) ** 2, members).clamp(min=_SMALLEST_VARIANCE)
        for mean, members in ((mean_a, a), (mean_c, c))
    )
    shift = (variance_a + (mean_a - mean_c) ** 2) / variance_c
    divergence = (shift - torch.log(variance_a / variance_c) - 1) / 2
    return torch.where((a.sum() > 1) & (c.sum() > 1), divergence, 0)
