"""Spectral decoupling (Pezeshki et al., NeurIPS 2021): a penalty on the squared logits.

Checked against the authors' public code, mpezeshki/Gradient_Starvation, which has one logit z for
two classes. There is no factor ½ on the penalty.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from rebias_dist.methods.base import Batch, Method, Output, wide
from rebias_dist.methods.options import SpectralDecouplingOptions

TARGETS = (0.44, 2.5)
"""The logits of classes 0 and 1 that form spw3 pulls towards, of the authors' CelebA run."""


class SpectralDecoupling(Method):
    """f minimises CE + c · mean of its squared logits; from a step on, CE has the factor c too."""

    config: SpectralDecouplingOptions

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE and the penalty, weighted for this step."""
        logits = wide(f.logits)
        of_ce, of_penalty = term_weights(
            self.config.coefficient, batch.step, self.config.anneal_step
        )
        return {
            "ce": of_ce * cross_entropy(logits, batch.labels, reduction="none"),
            "squared_logits": of_penalty * squared_logits(logits),
        }


def squared_logits(logits: Tensor) -> Tensor:
    """Return the penalty of each sample, ``(N,)``: the mean of z² over its logits.

    For several classes this is our extension of the authors' binary form.

    Args:
        logits: ``(N,)`` or ``(N, K)``
    """
    return (logits.reshape(len(logits), -1) ** 2).mean(1)


def term_weights(coefficient: float, step: int, anneal_step: int) -> tuple[float, float]:
    """Return the weights of the classification loss and of the penalty in a step.

    Before ``anneal_step``: (1, c). From it on: (c, c), so that the classification loss is scaled
    down as well, as in the authors' Coloured MNIST run (c = 2e-5 from step 450 on).

    Args:
        coefficient: c.
        step: counted from 0.
        anneal_step: the first step of the second phase; 0 has no first phase.
    """
    return (1.0 if step < anneal_step else coefficient), coefficient


def binary_log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log(1 + exp(-z (2y - 1)))`` of each sample, ``(N,)``, without overflow.

    Args:
        logits: ``(N,)``, z.
        labels: ``(N,)``, 0 or 1.
    """
    return -logsigmoid(logits * (2 * labels.to(logits.dtype) - 1))


def binary_objective(
    logits: Tensor,
    labels: Tensor,
    coefficient: float,
    *,
    form: Literal["plain", "urw", "spw1", "spw2", "spw3"] = "plain",
    ratio: float = 1.0,
) -> Tensor:
    """Return an objective of the authors' CelebA table, for the whole batch.

    * plain: mean log-loss + c · mean z².
    * urw: the sum of the two classes' mean log-losses + c · mean z².
    * spw1: as plain, with ratio · z in the penalty of class 1.
    * spw2: as plain, with ratio · z in the penalty of class 0.
    * spw3, the authors' result: mean log-loss + c · (mean of (z - 2.5)² over class 1 + mean of
      (z - 0.44)² over class 0).

    The mean over a class that the batch lacks is 0 (in the authors' code NaN).

    Args:
        logits: ``(N,)``, z.
        labels: ``(N,)``, 0 or 1.
        coefficient: c.
        form: which of them.
        ratio: of spw1 and spw2.
    """
    losses, first = binary_log_loss(logits, labels), labels == 1
    loss = _of_classes(losses, labels) if form == "urw" else losses.mean()
    if form == "spw3":
        away = torch.where(first, logits - TARGETS[1], logits - TARGETS[0])
        return loss + coefficient * _of_classes(away**2, labels)
    scaled = {"spw1": first, "spw2": ~first}.get(form, torch.zeros_like(first))
    return loss + coefficient * (torch.where(scaled, ratio * logits, logits) ** 2).mean()


def _of_classes(values: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the means over class 0 and over class 1."""
    total = values.new_zeros(())
    for label in (0, 1):
        members = labels == label
        total = total + (values * members).sum() / members.sum().clamp(min=1)
    return total
