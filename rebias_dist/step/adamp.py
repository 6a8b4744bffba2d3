"""AdamP in few operations, and without waiting for the device.

The package adamp defines the optimizer (Heo et al., "AdamP", ICLR 2021, algorithm 2); this
class takes the same steps to rounding. The package works tensor by tensor, with a dozen
operations for each, and the host waits for a decision about each tensor. Here all tensors of a
step lie side by side in one workspace, and those with rows of one width are reduced together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from adamp import AdamP as PublishedAdamP  # type: ignore[import-untyped]
from torch import Tensor
from torch.optim.adam import adam

from rebias_dist.objectives.full_precision import full_precision


class AdamP(PublishedAdamP):  # type: ignore[misc]
    """``adamp.AdamP`` without its nesterov: the same arguments, defaults, steps and state.

    Parameters may have any memory format; those of a group have one dtype and device. With
    the Adam direction p, a step subtracts ``rate · q`` from the weights w, where q is p without
    its part along w: channel by channel if no channel's gradient g has
    ``|cos(g, w)| ≥ δ/√width``; else for the tensor as one, by the same rule; else p itself.
    Where q is projected, weight decay shrinks by ``wd_ratio``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, delta, wd_ratio)
        # Kept to the next step, because fresh memory costs more than the work in it.
        self._workspaces: dict[tuple[int, ...], _Workspace] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept, self._workspaces = self._workspaces, {}
        for group in self.param_groups:
            # The published state counts the steps of each parameter.
            by_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_step.setdefault(self._state_of(p)["step"], []).append(p)
            for taken, parameters in by_step.items():
                self._step(parameters, taken, group, kept)
        return loss

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return state

    def _step(
        self,
        parameters: list[Tensor],
        taken: int,
        group: dict[str, Any],
        kept: dict[tuple[int, ...], _Workspace],
    ) -> None:
        key = tuple(map(id, parameters))
        work = kept.get(key) or _Workspace(parameters)
        self._workspaces[key] = work
        means: list[Tensor] = []
        squares: list[Tensor] = []
        for p, weight in zip(work.parameters, work.weights, strict=True):
            state = self.state[p]
            state["step"] += 1
            for name, found in (("exp_avg", means), ("exp_avg_sq", squares)):
                # A loaded state has the layout it was saved with.
                state[name] = _laid_out_like(weight, state[name])
                found.append(state[name].as_strided((p.numel(),), (1,)))
        work.fetch()
        # Adam on zeros gives the change that it would make to the weights, in one pass. It walks
        # memory, and on a CPU first copies what is not contiguous, so it gets flat views.
        adam(
            work.changes,
            work.gradients,
            means,
            squares,
            [],
            # adam() adds 1 before it uses the count.
            list(torch.full((len(work.changes),), float(taken), device=work.device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        work.apply(group)


def _laid_out_like(like: Tensor, value: Tensor) -> Tensor:
    """Return the value with the strides of ``like``, a dense tensor."""
    same = value.stride() == like.stride()
    return value if same else torch.empty_like(like).copy_(value)


class _Workspace:
    """Weights, gradients and changes of some parameters, side by side.

    It holds three rows of memory, in this order. In each row the matrices come first, by the
    width of their channels, and then the vectors. A matrix is any tensor of two or more
    dimensions, and its channels are its slices along the first one.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        matrices = sorted((p for p in parameters if p.ndim > 1), key=_width)
        vectors = [p for p in parameters if p.ndim < 2]
        self.parameters = matrices + vectors
        self.device = parameters[0].device
        room = parameters[0].new_empty((3, sum(p.numel() for p in parameters)))
        sizes = [p.numel() for p in self.parameters]
        weights, gradients, changes = (list(torch.split(row, sizes)) for row in room)
        self.changes, self.gradients = changes, gradients
        """Flat, one for each parameter."""
        self.weights, self._shaped_gradients = (
            [_shaped_like(p, part) for p, part in zip(self.parameters, parts, strict=True)]
            for parts in (weights, gradients)
        )
        self._all_changes = room[2]

        self._groups: list[Tensor] = []
        """For each width the channels ``(C, 3, width)``, views of the rows."""
        begin = 0
        for width, equal in groupby(matrices, key=_width):
            channels = sum(map(len, equal))
            part = room[:, begin : begin + channels * width].view(3, channels, width)
            self._groups.append(part.transpose(0, 1))
            begin += channels * width
        self._vectors = room[:, begin:]

        lengths = [len(p) for p in matrices]
        self._lengths = torch.tensor(lengths, dtype=torch.int64, device=self.device)
        """Number of channels of each matrix."""
        self._lengths_of_products = self._lengths.repeat(9)
        widths = room.new_tensor([_width(p) for p in matrices])
        self._roots = widths.sqrt(), (widths * self._lengths).sqrt()
        """Roots of the widths and of the sizes of the matrices."""
        self._owner = torch.arange(len(matrices), device=self.device)
        self._owner = self._owner.repeat_interleave(self._lengths, output_size=sum(lengths))
        """The number of the matrix to which each channel belongs."""

    def fetch(self) -> None:
        """Copy the weights and gradients into the rows, and set the changes to 0."""
        gradients = []
        for p in self.parameters:
            assert p.grad is not None
            gradients.append(p.grad)
        torch._foreach_copy_(self.weights + self._shaped_gradients, self.parameters + gradients)
        self._all_changes.zero_()

    def apply(self, group: dict[str, Any]) -> None:
        """Decay the weights and add the changes, without their parts along them where projected.

        Args:
            group: the optimizer's settings.
        """
        decay = group["lr"] * group["weight_decay"]
        if self._groups:
            parts = torch.split(self._factors(decay, group), [len(part) for part in self._groups])
            for channels, factors in zip(self._groups, parts, strict=True):
                weights, _, changes = channels.unbind(1)
                torch.addcmul(changes, weights, factors[:, None], out=weights)
        weights, _, changes = self._vectors
        torch.add(changes, weights, alpha=1 - decay, out=weights)
        torch._foreach_copy_(self.parameters, self.weights)

    def _factors(self, decay: float, group: dict[str, Any]) -> Tensor:
        """Return the factor by which each channel is multiplied before its change is added.

        The factors combine weight decay and projection: to remove from the change its part
        along w is to add a multiple of w to w.
        """
        eps, delta = group["eps"], group["delta"]
        plain, projected = 1 - decay, 1 - decay * group["wd_ratio"]
        # The inner products of the weights, gradient and change of each channel, (C, 9).
        products = self._all_changes.new_empty((len(self._owner), 3, 3))
        begin = 0
        with full_precision(self.device):
            for part in self._groups:
                end = begin + len(part)
                torch.bmm(part, part.mT, out=products[begin:end])
                begin = end
        # One row for each product, because segment_reduce has a fast kernel for flat data only.
        products = products.flatten(1).T.contiguous()
        # The sums over each tensor follow. unsafe=True: the host does not wait to check.
        sums = torch.segment_reduce(
            products.flatten(), "sum", lengths=self._lengths_of_products, unsafe=True
        )
        products = torch.cat([products, sums.view(9, -1)], dim=1)
        along, moved = products[1], products[2]
        norms = products[0:5:4].sqrt()  # of weights and gradient
        at_least = norms.clamp(min=eps)
        cosine = along.abs() / (at_least[0] * at_least[1])
        without = projected - moved / (norms[0] + eps) ** 2

        by_channel, as_one = torch.split(cosine, [len(self._owner), len(self._lengths)])
        largest = torch.segment_reduce(by_channel, "max", lengths=self._lengths, unsafe=True)
        of_channel, of_tensor = torch.split(without, [len(self._owner), len(self._lengths)])
        width, size = self._roots
        otherwise = torch.where(as_one < delta / size, of_tensor, plain)
        return torch.where(
            (largest < delta / width)[self._owner], of_channel, otherwise[self._owner]
        )


def _width(matrix: Tensor) -> int:
    """Return the number of weights in a channel."""
    return math.prod(matrix.shape[1:])


def _shaped_like(p: Tensor, part: Tensor) -> Tensor:
    """Return a view of ``part`` with the shape of ``p``, whose channels are contiguous.

    It has the memory format of ``p`` if the channels of that are contiguous too.
    """
    like = torch.empty_like(p, device="meta")
    if p.ndim > 1 and len(p) > 1 and like.stride(0) != _width(p):
        like = like.contiguous()
    return part.as_strided(p.shape, like.stride(), part.storage_offset())
