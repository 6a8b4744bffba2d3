"""JTT (Liu et al., ICML 2021): train again, with more weight on what was misclassified.

Checked against the authors' public code, anniesch/jtt. The error set E comes from a first training
by plain cross-entropy (CE). The authors predict during the training pass of the last epoch, while
the weights change; here the network is evaluated after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Engine, Method, Output, TrainingSet, cross_entropies
from rebias_dist.methods.options import JTTOptions


class JTT(Method):
    """f trains twice: on plain CE, and from its initial weights again with the error set up.

    The error set is found after the first training, by the network in evaluation mode.
    """

    config: JTTOptions

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Make room for the error set, which is not known yet."""
        self.labels = training.labels
        self.errors = torch.zeros_like(self.labels, dtype=torch.bool)
        self.found = torch.zeros((), dtype=torch.bool, device=self.labels.device)
        self._weights: Tensor | None = None

    def state(self) -> dict[str, Tensor]:
        """Return the error set, and whether it has been found."""
        return {"errors": self.errors, "found": self.found}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the error set; the weights follow from it."""
        super().load_state(state)
        self._weights = None

    def before_epoch(self, epoch: int, engine: Engine) -> None:
        """Before the first epoch of the second training, find the error set and restart f."""
        if bool(self.found):
            return
        errors = engine.predict("f") != self.labels
        sample_weights(errors, self.config.up_weight)  # refuses an error set without any or all
        self.errors.copy_(errors)
        self.found.fill_(True)
        self._weights = None
        engine.restart("f")

    @property
    def weights(self) -> Tensor:
        """The weights of the training samples, float64 ``[n]``, with mean 1."""
        if self._weights is None:
            weights, total = sample_weights(self.errors, self.config.up_weight)
            self._weights = weights * (len(weights) / total)
        return self._weights

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the weighted CE."""
        return {"weighted_ce": self.weights[batch.samples] * cross_entropies(f, batch)}


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
