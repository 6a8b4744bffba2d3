"""BatchNorm buffers that do not depend on the layout.

Statistics are taken per micro-batch. The running buffers change once per update of a network.
Each micro-batch turns the buffers from before the update into new ones, and their mean over all
M micro-batches of the step becomes the next state. That mean does not depend on which rank
computes which micro-batch. Passes without gradients leave the buffers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebias_dist.errors import ConfigError
from rebias_dist.phases import phase
from rebias_dist.step.precision import Precision

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class RunningStatistics:
    """The running buffers of all BatchNorm layers of one network."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        self._sum: Tensor | None = None

    @contextmanager
    def protected(self, collect: bool = False) -> Iterator[None]:
        """Run a forward pass on copies of the buffers; ``collect`` keeps the result for the update.

        The layers see copies because writing a buffer between a forward and its backward
        would invalidate the graph, which has saved it.
        """
        originals = [[layer._buffers[name] for name in _BUFFERS] for layer in self._layers]
        for layer in self._layers:
            for name in _BUFFERS:
                buffer = layer._buffers[name]
                layer._buffers[name] = None if buffer is None else buffer.clone()
        try:
            yield
            if collect and self._layers:
                made = self._flatten()
                self._sum = made if self._sum is None else self._sum + made
        finally:
            for layer, buffers in zip(self._layers, originals, strict=True):
                layer._buffers.update(zip(_BUFFERS, buffers, strict=True))

    def _flatten(self) -> Tensor:
        parts = []
        for layer in self._layers:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            parts += [layer.running_mean, layer.running_var]
        return torch.cat([part.detach().double() for part in parts])

    def commit(self, micro_batches: int) -> None:
        """Set the buffers to the mean over the step's ``micro_batches``; a collective."""
        if not self._layers:
            return
        total = self._sum if self._sum is not None else torch.zeros_like(self._flatten())
        if dist.is_initialized():
            with phase("communication"):
                dist.all_reduce(total)
        total /= micro_batches
        for layer in self._layers:
            for buffer in (layer.running_mean, layer.running_var):
                assert buffer is not None
                buffer.copy_(total[: buffer.numel()])
                total = total[buffer.numel() :]
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += 1
        self.discard()

    def discard(self) -> None:
        """Forget what was collected, because the update was skipped."""
        self._sum = None


def check_micro_batch_of_one(
    name: str, network: nn.Module, shape: tuple[int, int, int], precision: Precision
) -> None:
    """Refuse a network whose BatchNorm would see a single value per channel.

    Args:
        name: of the network, for the message.
        network: in training mode; it is left as it is.
        shape: of a sample.
        precision: in which the network computes.

    Raises:
        ConfigError: its maps shrink to 1×1 before a BatchNorm.
    """
    sample = torch.zeros(1, *shape, dtype=precision.parameters, device=precision.device)
    try:
        with RunningStatistics(network).protected(), torch.no_grad(), precision.autocast():
            network(sample)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"micro_batch: 1 leaves a BatchNorm of {name} with a single value per channel, "
            "whose variance is 0; use 2 or more, larger images, or norm group"
        ) from None
