"""The average over the positions of a feature map, with a gradient in the map's memory format."""

from typing import Any, cast

import torch
from torch import Tensor


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        last = maps.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if last else torch.contiguous_format
        ctx.shape = maps.shape
        return maps.mean(dim=(2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        height, width = ctx.shape[2:]
        spread = (gradient / (height * width))[:, :, None, None].expand(ctx.shape)
        return spread.contiguous(memory_format=ctx.format)


def average_pool(maps: Tensor) -> Tensor:
    """Return the mean of maps ``[N, C, H, W]`` over H and W, ``[N, C]``.

    Value and gradient are those of ``maps.mean(dim=(2, 3))``. But torch writes that gradient with
    the channels first. If the map has the channels last, the ReLU before the pool then reads two
    formats at once, which takes a quarter of a step of Biased-MNIST in bf16 on a CPU.

    AdaptiveAvgPool2d is not used because its gradient is not deterministic on CUDA.
    """
    return cast(Tensor, _AveragePool.apply(maps))
