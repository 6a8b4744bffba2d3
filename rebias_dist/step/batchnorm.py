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
from rebias_dist.models import is_frozen
from rebias_dist.phases import phase
from rebias_dist.step.precision import Precision

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class RunningStatistics:
    """The running buffers of all BatchNorm layers of one network that are not frozen.

    All layers' buffers are copied, collected and set together, because a network has dozens of
    layers and small batches would otherwise wait for many small operations.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, _BatchNorm)
            and layer.running_mean is not None
            and not is_frozen(layer)
        ]
        self._sum: Tensor | None = None

    @contextmanager
    def protected(self, collect: bool = False) -> Iterator[None]:
        """Run a forward pass on copies of the buffers; ``collect`` keeps the result for the update.

        The layers see copies because writing a buffer between a forward and its backward
        would invalidate the graph, which has saved it. The counters are hidden, except from a
        layer whose averages need it: :meth:`commit` counts for all layers at once.
        """
        if not self._layers:
            yield
            return
        originals = [[layer._buffers[name] for name in _BUFFERS] for layer in self._layers]
        # Multiplying by 1 copies all tensors in one operation. Each copy has storage of its own:
        # views of one tensor would share its version, so that one layer's update would
        # invalidate what the graph has saved of another.
        copies = torch._foreach_mul(self._statistics(), 1)
        for number, layer in enumerate(self._layers):
            counter = layer.num_batches_tracked
            layer._buffers["running_mean"] = copies[2 * number]
            layer._buffers["running_var"] = copies[2 * number + 1]
            if counter is not None:
                counter = counter.clone() if layer.momentum is None else None
            layer._buffers["num_batches_tracked"] = counter
        try:
            yield
            if collect:
                made = self._flatten()
                self._sum = made if self._sum is None else self._sum.add_(made)
        finally:
            for layer, buffers in zip(self._layers, originals, strict=True):
                layer._buffers.update(zip(_BUFFERS, buffers, strict=True))

    def _statistics(self) -> list[Tensor]:
        """Return the means and variances of all layers, the buffers themselves."""
        found = []
        for layer in self._layers:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            found += [layer.running_mean, layer.running_var]
        return found

    def _flatten(self) -> Tensor:
        return torch.cat(self._statistics()).double()

    def commit(self, micro_batches: int) -> None:
        """Set the buffers to the mean over the step's ``micro_batches``; a collective."""
        if not self._layers:
            return
        total = self._sum if self._sum is not None else torch.zeros_like(self._flatten())
        if dist.is_initialized():
            with phase("communication"):
                dist.all_reduce(total)
        total /= micro_batches
        buffers = self._statistics()
        torch._foreach_copy_(buffers, torch.split(total, [buffer.numel() for buffer in buffers]))
        counters = [layer.num_batches_tracked for layer in self._layers]
        present = [counter for counter in counters if counter is not None]
        if present:
            torch._foreach_add_(present, 1)
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
