"""AdamP in few passes over memory, and without waiting for the device.

The package adamp defines the optimizer (Heo et al., "AdamP", ICLR 2021, algorithm 2); this
class takes the same steps to rounding. The package works tensor by tensor, with a pass over
memory for each operation, and the host waits for a decision about each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from adamp import AdamP as PublishedAdamP  # type: ignore[import-untyped]
from torch import Tensor
from torch.optim.adam import adam


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
        self._changes: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # The published state counts the steps of each parameter.
            by_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_step.setdefault(self._state_of(p)["step"], []).append(p)
            for taken, parameters in by_step.items():
                self._step(parameters, taken, group)
        return loss

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        for name in ("exp_avg", "exp_avg_sq"):  # a loaded state has the layout it was saved with
            state[name] = _laid_out_like(p, state[name])
        return state

    def _step(self, parameters: list[Tensor], taken: int, group: dict[str, Any]) -> None:
        gradients, changes = [], []
        for p in parameters:
            g = p.grad
            assert g is not None
            gradients.append(_laid_out_like(p, g))
            if p not in self._changes:  # kept, because fresh memory costs more than the work in it
                self._changes[p] = torch.empty_like(p)
            changes.append(self._changes[p])
            self.state[p]["step"] += 1
        # Adam on zeros gives the change that it would make to the weights, in one pass.
        torch._foreach_zero_(changes)
        adam(
            changes,
            gradients,
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            [],
            # adam() adds 1 before it uses the count.
            list(torch.full((len(changes),), float(taken), device=changes[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        decay = group["lr"] * group["weight_decay"]
        vectors = [p for p in parameters if p.ndim < 2]
        if vectors and decay:
            torch._foreach_mul_(vectors, 1 - decay)
        matrices = [
            triple
            for triple in zip(parameters, gradients, changes, strict=True)
            if triple[0].ndim > 1
        ]
        if matrices:
            for (p, _, _), factor in zip(matrices, _factors(matrices, decay, group), strict=True):
                p.mul_(factor.view(-1, *[1] * (p.ndim - 1)))
        torch._foreach_add_(parameters, changes)


def _laid_out_like(p: Tensor, value: Tensor) -> Tensor:
    """Return the value with the strides of ``p``: the fused kernel walks memory, not indices."""
    same = all(
        mine == other or size == 1
        for mine, other, size in zip(value.stride(), p.stride(), p.shape, strict=True)
    )
    return value if same else torch.empty_like(p).copy_(value)


def _factors(
    matrices: list[tuple[Tensor, Tensor, Tensor]], decay: float, group: dict[str, Any]
) -> list[Tensor]:
    """Return the factors by which the channels of each tensor are multiplied.

    The change is added afterwards. The factors combine weight decay and projection: to remove
    from the change its part along w is to add a multiple of w to w.

    Args:
        matrices: weights, gradient and change of each tensor; all tensors are decided at once.
        decay: learning rate times weight decay.
        group: the optimizer's settings.
    """
    eps, delta, ratio = group["eps"], group["delta"], group["wd_ratio"]
    parts = []
    largest = max((p for p, _, _ in matrices), key=Tensor.numel)
    room = torch.empty(largest.numel(), dtype=largest.dtype, device=largest.device)
    for p, g, change in matrices:
        dims = tuple(range(1, p.ndim))
        product = room[: p.numel()].as_strided(p.shape, p.stride())
        along = torch.mul(g, p, out=product).sum(dims)
        moved = torch.mul(change, p, out=product).sum(dims)
        norms = (torch.linalg.vector_norm(t, dim=dims) for t in (g, p))
        parts.append(torch.stack([along, moved, *norms]))
    along, moved, g_norm, p_norm = torch.cat(parts, dim=1)

    # A copy from pinned memory does not make the host wait.
    lengths = torch.tensor([[len(p), p.numel()] for p, _, _ in matrices])
    if along.is_cuda:
        lengths = lengths.pin_memory().to(along.device, non_blocking=True)
    channels, sizes = lengths.T.contiguous()

    def reduced(values: Tensor, how: str) -> Tensor:
        # unsafe=True: the host does not wait to check the lengths.
        return torch.segment_reduce(values, how, lengths=channels, unsafe=True)

    def of_channels(values: Tensor) -> Tensor:
        return values.repeat_interleave(channels, output_size=len(along))

    def cosine(along: Tensor, g_norm: Tensor, p_norm: Tensor) -> Tensor:
        return along.abs() / (g_norm.clamp(min=eps) * p_norm.clamp(min=eps))

    all_along, all_moved = reduced(along, "sum"), reduced(moved, "sum")
    all_g, all_p = (reduced(norm.square(), "sum").sqrt() for norm in (g_norm, p_norm))
    by_channel = reduced(cosine(along, g_norm, p_norm), "max") < delta / (sizes / channels).sqrt()
    as_one = cosine(all_along, all_g, all_p) < delta / sizes.sqrt()
    plain, projected = 1 - decay, 1 - decay * ratio
    otherwise = torch.where(as_one, projected - all_moved / (all_p + eps) ** 2, plain)
    factors = torch.where(
        of_channels(by_channel), projected - moved / (p_norm + eps) ** 2, of_channels(otherwise)
    )
    return list(torch.split(factors, [len(p) for p, _, _ in matrices]))
