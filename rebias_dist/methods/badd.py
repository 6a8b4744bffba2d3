"""BAdd (Sarridis et al., 2024): the bias is added to the features in training.

Checked against the first author's vb-mitigator, gsarridis/vb-mitigator. The objective is CE on
``head(f + m Σ_k h_k)``; in evaluation the network is ``head(f)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


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
