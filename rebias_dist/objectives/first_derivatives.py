"""Second derivatives that would be silently wrong raise an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _FirstDerivativeOnly(torch.autograd.Function):
    """Identity on a gradient that must not be differentiated again."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, *causes: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "objectives of the global batch have first derivatives only: their gradients cannot "
            "be differentiated again"
        )


def first_derivatives(
    gradients: Sequence[Tensor | None], causes: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of a backward pass such that their own derivatives raise.

    Args:
        gradients: computed without autograd.
        causes: the tensors on which they depend.
    """
    if not torch.is_grad_enabled():  # no create_graph=True
        return list(gradients)
    return [
        None if g is None else cast(Tensor, _FirstDerivativeOnly.apply(g, *causes))
        for g in gradients
    ]
