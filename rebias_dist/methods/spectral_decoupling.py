"""Spectral decoupling (Pezeshki et al., NeurIPS 2021): a penalty on the squared logits.

Checked against the authors' public code, mpezeshki/Gradient_Starvation, which has one logit z for
two classes. There is no factor ½ on the penalty.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Method, Output, TrainingSet, wide
from rebias_dist.methods.options import SpectralDecouplingOptions

Form = Literal["plain", "urw", "spw1", "spw2", "spw3"]

TARGETS = (0.44, 2.5)
"""The logits of classes 0 and 1 that form spw3 pulls towards, of the authors' CelebA run."""


class SpectralDecoupling(Method):
    """f minimises CE + c · mean of its squared logits; from a step on, CE has the factor c too.

    With two classes, z is the difference of the two logits in the forms other than plain.
    """

    config: SpectralDecouplingOptions

    def __init__(self, config: SpectralDecouplingOptions) -> None:
        super().__init__(config)
        # These forms need the number of samples of each class in the batch.
        self.observes = config.form in ("urw", "spw3")

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Refuse the forms for two classes with other numbers of classes."""
        if self.config.form != "plain" and training.classes != 2:
            raise ConfigError(
                f"method.form: {self.config.form} is for 2 classes, but the data have "
                f"{training.classes}; use plain"
            )

    def values(self, f: Output | None, gs: list[Output], batch: Batch) -> dict[str, Tensor]:
        """Return nothing: the labels of the batch are enough."""
        return {}

    def observe(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return N over the number of samples of each sample's class."""
        return class_weights(batch.labels)

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the CE and the penalty, weighted for this step."""
        logits, form, c = wide(f.logits), self.config.form, self.config.coefficient
        of_ce, of_penalty = term_weights(c, batch.step, self.config.anneal_step)
        ce = cross_entropy(logits, batch.labels, reduction="none")
        penalty = squared_logits(logits)
        if form != "plain":
            z, weights = logits[:, 1] - logits[:, 0], batch.weights
            ce, penalty = binary_terms(z, batch.labels, weights, form=form, ratio=self.config.ratio)
        return {"ce": of_ce * ce, "squared_logits": of_penalty * penalty}


def squared_logits(logits: Tensor) -> Tensor:
    """Return the penalty of each sample, ``(N,)``: the mean of z² over its logits.

    For several classes this is our extension of the authors' binary form.

    Args:
        logits: ``(N,)`` or ``(N, K)``
    """
    return (logits.reshape(len(logits), -1) ** 2).mean(1)


def term_weights(coefficient: float, step: int, anneal_step: int | None) -> tuple[float, float]:
    """Return the weights of the classification loss and of the penalty in a step.

    Before ``anneal_step``: (1, c). From it on: (c, c), so that the classification loss is scaled
    down as well, as in the authors' Coloured MNIST run (c = 2e-5 from step 450 on).

    Args:
        coefficient: c.
        step: counted from 0.
        anneal_step: the first step of the second phase; None: there is none.
    """
    annealed = anneal_step is not None and step >= anneal_step
    return (coefficient if annealed else 1.0), coefficient


def binary_log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log(1 + exp(-z (2y - 1)))`` of each sample, ``(N,)``, without overflow.

    Args:
        logits: ``(N,)``, z.
        labels: ``(N,)``, 0 or 1.
    """
    return -logsigmoid(logits * (2 * labels.to(logits.dtype) - 1))


def class_weights(labels: Tensor) -> Tensor:
    """Return N over the number of samples of each sample's class, ``(N,)`` float64.

    Args:
        labels: ``(N,)`` int64, of the whole batch.
    """
    # Not bincount, for which the host waits to learn the largest label.
    return len(labels) / (labels[:, None] == labels).sum(1).double()


def binary_terms(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    *,
    form: Form = "plain",
    ratio: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the per-sample terms of an objective of the authors' CelebA table.

    The objective is the mean of the first over the batch plus c times that of the second:

    * plain: mean log-loss + c · mean z².
    * urw: the sum of the two classes' mean log-losses + c · mean z².
    * spw1: as plain, with ratio · z in the penalty of class 1.
    * spw2: as plain, with ratio · z in the penalty of class 0.
    * spw3, the authors' result: mean log-loss + c · (mean of (z - 2.5)² over class 1 + mean of
      (z - 0.44)² over class 0).

    A class that the batch lacks adds nothing (in the authors' code NaN).

    Args:
        logits: ``(N,)``, z.
        labels: ``(N,)``, 0 or 1.
        weights: of :func:`class_weights`, for urw and spw3.
        form: which of them.
        ratio: of spw1 and spw2.

    Returns:
        The losses and the penalties, ``(N,)`` each.
    """
    losses, first = binary_log_loss(logits, labels), labels == 1
    if form == "spw3":
        assert weights is not None
        away = torch.where(first, logits - TARGETS[1], logits - TARGETS[0])
        return losses, weights * away**2
    scaled = {"spw1": first, "spw2": ~first}.get(form, torch.zeros_like(first))
    if form == "urw":
        assert weights is not None
        losses = weights * losses
    return losses, torch.where(scaled, ratio * logits, logits) ** 2
