"""JTT (Liu et al., ICML 2021): train again, with more weight on what was misclassified.

Checked against the authors' public code, anniesch/jtt. The error set E comes from a first training
by plain cross-entropy (CE). The authors predict during the training pass of the last epoch, while
the weights change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebias_dist.errors import ConfigError


def error_set(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``(N,)`` bool: which training samples the first network misclassifies."""
    return logits.argmax(1) != labels


def automatic_up_weight(errors: Tensor) -> int:
    """Return the λ that the authors' code takes for -1: ``int((N - |E|) / |E|) - 1``, or 0.

    It balances errors and others, as an error counts λ + 1 times.

    Raises:
        ConfigError: E is empty or has all samples.
    """
    size = _checked_size(errors)
    return max(0, (len(errors) - size) // size - 1)


def sample_weights(errors: Tensor, up_weight: int) -> tuple[Tensor, int]:
    """Return the weight of each training sample, ``1 + λ [i ∈ E]``, and their sum ``N + λ |E|``.

    The objective of an epoch is ``Σ_i weight_i · CE_i / (N + λ |E|)``. The authors append λ copies
    of E to the training set, so an error counts λ + 1 times.

    Args:
        errors: ``(N,)`` bool, E.
        up_weight: λ, 0 or more; -1 stands for :func:`automatic_up_weight`.

    Returns:
        ``(N,)`` float64, and their sum.

    Raises:
        ConfigError: E is empty or has all samples, or λ is below -1.
    """
    size = _checked_size(errors)
    if up_weight < -1:
        raise ConfigError(f"JTT's weight is {up_weight}; use 0 or more, or -1 for automatic")
    if up_weight == -1:
        up_weight = automatic_up_weight(errors)
    weights = 1 + up_weight * errors.to(torch.float64)
    return weights, len(errors) + up_weight * size


def _checked_size(errors: Tensor) -> int:
    size = int(errors.sum())
    if size == 0:
        raise ConfigError(
            "the first network of JTT misclassifies no training sample, so there is nothing to "
            "give more weight to; train it for fewer epochs"
        )
    if size == len(errors):
        raise ConfigError(
            "the first network of JTT misclassifies all training samples; train it for longer"
        )
    return size
