"""BAdd (Sarridis et al., 2024): the bias is added to the features in training.

Checked against the first author's vb-mitigator, gsarridis/vb-mitigator. The objective is CE on
``head(f + m Σ_k h_k)``; in evaluation the network is ``head(f)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Method, Output, TrainingSet, wide
from rebias_dist.methods.classifier import linear_classifier, probe
from rebias_dist.methods.options import BAddOptions


class BAdd(Method):
    """f minimises the CE of its classifier on its features plus those of each fixed g.

    Dropout before the classifier acts on f's features alone.
    """

    config: BAddOptions
    f_needs_g = True

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Find f's classifier."""
        self.classifier = linear_classifier(networks["f"], training, self.config.name)
        width = self.classifier.in_features
        for name, network in networks.items():
            found = probe(network, training)[1].shape[1]
            if found != width:
                raise ConfigError(
                    f"method.name: badd adds features of one width, but f has {width} and {name} "
                    f"has {found}; make the networks alike in width"
                )

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE of the biased logits."""
        added = biased_features(
            torch.zeros_like(wide(f.features)),
            [wide(g.features) for g in gs],
            m=self.config.added_weight,
        )
        # The classifier is linear, so it can be applied to what is added alone.
        logits = wide(f.logits) + added @ wide(self.classifier.weight).T
        return {"biased_ce": cross_entropy(logits, batch.labels, reduction="none")}


def biased_features(features: Tensor, bias_features: Sequence[Tensor], *, m: float = 1.0) -> Tensor:
    """Return ``f + m Σ_k h_k``, which the classifier takes in training.

    Args:
        features: ``(N, d)``, f of the model.
        bias_features: ``(N, d)`` each, h of the frozen bias networks; no gradient returns through
            them.
        m: the authors' is 1, or 0.5 with two bias networks.

    Raises:
        ValueError: the widths differ.
    """
    for h in bias_features:
        if h.shape != features.shape:
            raise ValueError(
                f"BAdd adds features of one shape, got {tuple(features.shape)} of the model and "
                f"{tuple(h.shape)} of a bias network"
            )
    return features + m * sum(h.detach() for h in bias_features)
