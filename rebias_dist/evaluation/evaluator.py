"""How networks are evaluated: what reaches them, and on which ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rebias_dist.config.schema import Config
from rebias_dist.data.transforms import Transform, eval_transform
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.step.precision import Precision


@dataclass(frozen=True)
class Evaluator:
    """Networks, and how the samples of a split reach them."""

    networks: Mapping[str, nn.Module]
    """``f``, ``g0``, ``g1`` …"""
    batch: int
    """Samples of a forward pass."""
    transform: Transform
    """What is done to each image."""
    workers: int
    """Processes that decode."""
    normalise: Callable[[Tensor], Tensor]
    """Makes the networks' input of uint8 images on their device."""
    precision: Precision
    """Of the forward pass, and the device."""
    hsic_samples: int
    """Number of samples of a split, from the first, whose features are compared."""
    consensus: Consensus
    """The ranks."""

    @classmethod
    def of(
        cls,
        config: Config,
        networks: Mapping[str, nn.Module],
        normalise: Callable[[Tensor], Tensor],
        precision: Precision,
        consensus: Consensus,
    ) -> Evaluator:
        """Return the evaluator of networks as a configuration says."""
        return cls(
            networks=networks,
            batch=config.evaluate.batch,
            transform=eval_transform(config.data),
            workers=config.data.workers,
            normalise=normalise,
            precision=precision,
            hsic_samples=config.evaluate.hsic_samples,
            consensus=consensus,
        )
