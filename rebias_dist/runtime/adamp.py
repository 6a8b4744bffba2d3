"""AdamP in few passes over memory and without waiting for the device.

The package adamp defines the optimizer (Heo et al., "AdamP", ICLR 2021, algorithm 2); this
class takes the same steps to rounding. The package works parameter by parameter, in about
thirty passes over each, and asks the device twice a parameter whether to project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from adamp import AdamP as PublishedAdamP  # type: ignore[import-untyped]
from torch import Tensor
from torch.optim.adam import adam


class AdamP(PublishedAdamP):  # type: ignore[misc]
    """``adamp.AdamP`` without its nesterov: the same arguments, defaults, steps and state.

    Parameters may have any memory format. With the Adam direction p, a step subtracts
    ``rate · q`` from the weights w, where q is p without its part along w: channel by channel
    if no channel's gradient g has ``|cos(g, w)| ≥ δ/√width``; else for the tensor as one, by
    the same rule; else p itself. Where q is projected, weight decay shrinks by ``wd_ratio``.
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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Room for the change of a tensor and for one product, used by one after the other: fresh
        # memory for each would cost more than what is computed in it.
        room: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                kind = (p.dtype, p.device)
                if kind not in room or room[kind].shape[1] < p.numel():
                    room[kind] = p.new_empty((2, max(q.numel() for q in trained)))
                change, product = (
                    part[: p.numel()].as_strided(p.shape, p.stride()) for part in room[kind]
                )
                g = p.grad
                if g.stride() != p.stride():  # the fused kernel walks the memory, not the indices
                    g = torch.empty_like(p).copy_(g)
                self._adam(p, g, change, group)
                decay = group["lr"] * group["weight_decay"]
                if p.ndim > 1:
                    p.mul_(_factor(p, g, change, product, decay, group))
                elif decay:
                    p.mul_(1 - decay)
                p.add_(change)
        return loss

    def _adam(self, p: Tensor, g: Tensor, change: Tensor, group: dict[str, Any]) -> None:
        """Set ``change`` to what Adam would add to the weights, in one pass: Adam on zeros."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        adam(
            [change.zero_()],
            [g],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [torch.tensor(float(state["step"]), device=p.device)],  # counted before it is used
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        state["step"] += 1


def _factor(
    p: Tensor, g: Tensor, change: Tensor, product: Tensor, decay: float, group: dict[str, Any]
) -> Tensor:
    """What the weights are multiplied by before the change is added: ``(channels, 1, …)``.

    Decay, and the projection: to take from ``change`` its part along w is to add to w a
    multiple of itself.
    """
    eps, delta, ratio = group["eps"], group["delta"], group["wd_ratio"]
    dims = tuple(range(1, p.ndim))
    along = torch.mul(g, p, out=product).sum(dims, keepdim=True)
    moved = torch.mul(change, p, out=product).sum(dims, keepdim=True)
    g_norm = torch.linalg.vector_norm(g, dim=dims, keepdim=True)
    p_norm = torch.linalg.vector_norm(p, dim=dims, keepdim=True)
    keep = torch.ones_like(p_norm) - decay
    for whole in (True, False):  # the channels' verdict, if there is one, replaces the tensor's
        if whole:
            a, m = along.sum(), moved.sum()
            gn, pn = (torch.linalg.vector_norm(norm) for norm in (g_norm, p_norm))
        else:
            a, m, gn, pn = along, moved, g_norm, p_norm
        cosine = a.abs() / (gn.clamp(min=eps) * pn.clamp(min=eps))
        width = p.numel() if whole else p[0].numel()
        project = cosine.max() < delta / math.sqrt(width)
        keep = torch.where(project, 1 - decay * ratio - m / (pn + eps) ** 2, keep)
    return keep
