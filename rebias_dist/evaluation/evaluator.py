"""Networks to evaluate, with the settings of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.data.transforms import Transform, eval_transform
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.precision import Precision


@dataclass(frozen=True)
class Evaluator:
    """Networks, and how the samples of a split are prepared for them."""

    networks: Mapping[str, nn.Module]
    """``f``, ``g0``, ``g1`` …"""
    batch: int
    """Samples in a forward pass."""
    transform: Transform
    """Applied to each decoded image."""
    workers: int
    """Number of processes that decode images."""
    normalise: Callable[[Tensor], Tensor]
    """Maps uint8 images on the networks' device to the networks' input."""
    precision: Precision
    """Precision and device of the forward pass."""
    hsic_samples: int
    """The features of the first so many samples of a split are compared by HSIC."""
    consensus: Consensus
    """The ranks."""
    rule: BiasRule
    """Which value of the bias goes with each class."""

    @classmethod
    def of(
        cls,
        config: Config,
        networks: Mapping[str, nn.Module],
        normalise: Callable[[Tensor], Tensor],
        precision: Precision,
        consensus: Consensus,
        rule: BiasRule,
    ) -> Evaluator:
        """Return an evaluator with the settings of a configuration."""
        return cls(
            networks=networks,
            batch=config.evaluate.batch,
            transform=eval_transform(config.data),
            workers=config.data.workers,
            normalise=normalise,
            precision=precision,
            hsic_samples=config.evaluate.hsic_samples,
            consensus=consensus,
            rule=rule,
        )
