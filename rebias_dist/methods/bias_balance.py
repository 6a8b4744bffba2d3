"""BiasBal (Hong and Yang, NeurIPS 2021): cross-entropy on logits with the prior of the bias.

Checked against the authors' public code, grayhong/bias-contrastive-learning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Method, Output, TrainingSet, wide


class BiasBalance(Method):
    """f minimises the CE of its logits plus the log-prior of the classes, given the bias."""

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Count the training samples of each class with each bias label."""
        self.prior = prior_of(training)

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the balanced CE."""
        logits = balanced_logits(wide(f.logits), batch.bias, self.prior)
        return {"balanced_ce": cross_entropy(logits, batch.labels, reduction="none")}


def prior_of(training: TrainingSet) -> Tensor:
    """Return ``log(p(y|b) + 1e-9)`` of a training set, ``(biases, classes)`` float64.

    A bias value that only other splits have is in no batch; its row is 0.
    """
    biases = int(training.bias.max()) + 1
    counts = count_pairs(training.labels, training.bias, training.classes, biases)
    there = counts.any(1)
    prior = torch.zeros_like(counts)
    prior[there] = log_prior(counts[there])
    return prior


def count_pairs(labels: Tensor, bias: Tensor, classes: int, biases: int) -> Tensor:
    """Return how many training samples have each bias (row) and class (column).

    Args:
        labels: ``(N,)`` int64, from 0 to ``classes`` - 1.
        bias: ``(N,)`` int64, from 0 to ``biases`` - 1.
        classes: number of classes.
        biases: number of bias values.

    Returns:
        ``(biases, classes)`` float64.

    Raises:
        ConfigError: a label or a bias is out of range; a bias of -1 means that a sample has none.
    """
    for name, values, number in (("class", labels, classes), ("bias", bias, biases)):
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < number):
            raise ConfigError(
                f"the training set has a {name} label {int(values.min())} or "
                f"{int(values.max())}; the labels must be from 0 to {number - 1}"
            )
    counts = torch.bincount(bias * classes + labels, minlength=biases * classes)
    return counts.reshape(biases, classes).double()


def log_prior(counts: Tensor) -> Tensor:
    """Return ``log(p(y|b) + 1e-9)``, ``(biases, classes)`` float64, from :func:`count_pairs`.

    Raises:
        ConfigError: the training set has no sample of some bias value. (The authors' code
            divides by zero there, and its loss becomes NaN.)
    """
    totals = counts.sum(1, keepdim=True)
    absent = (totals[:, 0] == 0).nonzero().flatten().tolist()
    if absent:
        raise ConfigError(
            f"the training set has no sample of the bias values {absent}; BiasBal needs the "
            "share of the classes for each bias value"
        )
    return torch.log(counts / totals + 1e-9)


def balanced_logits(logits: Tensor, bias: Tensor, prior: Tensor) -> Tensor:
    """Return ``logits + log(p(y|b) + 1e-9)``, for the training loss only.

    The authors' code changes the caller's logits in place; this one does not.

    Args:
        logits: ``(N, classes)``
        bias: ``(N,)`` int64
        prior: of :func:`log_prior`.
    """
    return logits + prior.to(logits)[bias]
