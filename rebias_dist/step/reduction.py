"""The gradients of a network and its heads, averaged over the ranks while they are computed.

DDP waits for a gradient of every parameter. A network of the user's may have a parameter that its
forward pass does not use, always or on some samples; a method may use no logits, or its heads only
now and then. One rank alone goes on without such a gradient, so several ranks must as well. (DDP's
own ``find_unused_parameters`` knows only what the forward pass uses, not what the method does.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from rebias_dist.phases import switch
from rebias_dist.ranks.device_wait import to_host
from rebias_dist.ranks.versions import BUFFERS_STAY


class Reduction:
    """Calls a network and reduces its gradients; without a process group it only calls it.

    Args:
        network: maps images to ``(logits, features)``.
        heads: reduced with the network, or None.
        device: of both.
        unused: some parameters may get no gradient.
    """

    def __init__(
        self, network: nn.Module, heads: nn.Module | None, device: torch.device, unused: bool
    ) -> None:
        self._module = network if heads is None else _Both(network, heads)
        self._ddp: DistributedDataParallel | None = None
        self._reduces = False
        self._watched: list[nn.Parameter] = []
        """Parameters that may get no gradient."""
        self._heard: set[int] = set()
        """Places of those of which DDP has heard in this backward pass."""
        self._present: set[int] = set()
        """Places of those that have a gradient on this rank in this update."""
        trained = [p for p in self._module.parameters() if p.requires_grad]
        if not dist.is_initialized() or not trained:
            return
        self._ddp = DistributedDataParallel(
            self._module,
            device_ids=[device.index] if device.type == "cuda" else None,
            # step/batchnorm.py keeps the buffers alike on all ranks.
            **BUFFERS_STAY,
            gradient_as_bucket_view=True,  # saves a copy of the gradients and its memory
        )
        if not unused and (heads is None or not any(p.requires_grad for p in heads.parameters())):
            return
        self._watched = trained
        # Kept, because a node and its hooks live only as long as something refers to it.
        self._nodes = [get_gradient_edge(parameter).node for parameter in trained]
        for place, node in enumerate(self._nodes):
            node.register_hook(partial(self._hear, place))

    def _hear(self, place: int, *gradients: Any) -> None:
        self._heard.add(place)
        if self._watched[place].grad is not None:
            self._present.add(place)

    def __call__(self, images: Tensor) -> Any:
        """Run a forward pass whose backward pass is to be reduced."""
        module = self._module if self._ddp is None else self._ddp
        return module(images)

    @contextmanager
    def postponed(self, without: bool) -> Iterator[None]:
        """Keep the gradients of this forward and backward local, if ``without`` says so."""
        self._reduces = self._ddp is not None and not without
        if self._ddp is None or not without:
            yield
            return
        with self._ddp.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        """Back-propagate a loss, and reduce the gradients unless that is postponed."""
        if not self._reduces:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        self._heard.clear()
        loss.register_hook(_begin_communication_last)  # type: ignore[no-untyped-call]
        loss.backward()  # type: ignore[no-untyped-call]
        if silent := [p for n, p in enumerate(self._watched) if n not in self._heard]:
            # The ranks wait in their reductions until DDP has heard of these here too.
            _NoGradient.apply(*silent).backward()

    def drop_absent(self) -> None:
        """Remove the zeros that DDP made where no rank has a gradient; a collective.

        An optimizer then leaves such a parameter alone, with its decay, as on a single rank.
        """
        if not self._watched:
            return
        here = [place in self._present for place in range(len(self._watched))]
        self._present.clear()
        device = self._watched[0].device
        anywhere = torch.tensor(here, dtype=torch.int32).to(device, non_blocking=True)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        if all(here):  # so that the host need not wait for the device
            return
        for parameter, found in zip(self._watched, to_host(anywhere).tolist(), strict=True):
            if not found:
                parameter.grad = None


class _Both(nn.Module):
    """A network with heads that a method calls by itself."""

    def __init__(self, network: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.network, self.heads = network, heads

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


class _NoGradient(torch.autograd.Function):
    """Back-propagates to parameters that there is no gradient for them."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None,) * ctx.count


def _begin_communication_last(gradient: Tensor) -> None:
    # When all gradients are computed, autograd runs its callbacks in the order in which they were
    # queued. This one is queued at the first gradient, and DDP's, which waits for the pending
    # reductions, at the last. So the time of that wait counts as communication.
    torch.autograd.Variable._execution_engine.queue_callback(lambda: switch("communication"))
