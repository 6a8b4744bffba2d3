"""The average over the positions of a feature map, with a gradient in the map's memory format."""

from torch import Tensor


def average_pool(maps: Tensor) -> Tensor:
    """Return the mean of maps ``[N, C, H, W]`` over H and W, ``[N, C]``.

    Value and gradient are those of ``maps.mean(dim=(2, 3))``, bit for bit. But torch writes that
    gradient with the channels first. If the map has the channels last, the ReLU before the pool
    then reads two formats at once, which is slow on a CPU. docs/performance.md has the times.
    """
    channels_last = maps.stride(1) == 1
    return maps.permute(0, 2, 3, 1).mean(dim=(1, 2)) if channels_last else maps.mean(dim=(2, 3))
