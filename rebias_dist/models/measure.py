"""Properties of a network, found by running it: feature width and receptive field."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rebias_dist.errors import ArgumentError


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block; restore each module's mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def features_of(network: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return the features ``[1, d]`` of a black image of ``image_shape`` (C, H, W).

    Runs one forward pass in eval mode; changes neither the network nor any random state.
    """
    parameter = next(network.parameters())
    images = torch.zeros((1, *image_shape), device=parameter.device, dtype=parameter.dtype)
    with _evaluating(network):
        features: Tensor = network(images)[1]
    return features


def feature_dim(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Return the width d of the features ``[N, d]`` for images of ``image_shape`` (C, H, W)."""
    with torch.no_grad():
        return features_of(network, image_shape).shape[1]


def receptive_field(
    network: nn.Module, layer: str, *, image_size: int = 64, channels: int = 3, trials: int = 8
) -> tuple[int, int]:
    """Return the receptive field (height, width), in pixels, of a layer's middle position.

    This is the bounding box of the pixels in which that position has a non-zero gradient. A
    ReLU with negative input blocks the gradient, so the pixels of ``trials`` random images are
    united, each with a random mixture of the map's channels. The network runs in eval mode,
    because batch statistics couple all pixels. Neither it nor any random state changes.

    Args:
        network: maps ``[N, channels, H, W]`` to ``(logits, features)``.
        layer: name of a layer that returns a map ``[N, C, h, w]``, such as ``layer4``.
        image_size: side of the square images, in pixels; must exceed the field.
        channels: number of channels of the images.
        trials: number of images.

    Raises:
        ArgumentError: there is no such layer, it does not return one map, no pixel changes it, or
            the field reaches the edge of the images.
    """
    try:
        module = network.get_submodule(layer)
    except AttributeError as error:
        raise ArgumentError(f"receptive field: the network has no layer {layer!r}") from error
    maps: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(parameter)

    images = noise(trials, channels, image_size, image_size).requires_grad_()
    try:
        with _evaluating(network), torch.enable_grad():
            network(images)
    finally:
        handle.remove()
    if len(maps) != 1 or maps[0].ndim != 4:
        raise ArgumentError(
            f"receptive field: layer {layer!r} does not return one [N, C, h, w] map"
        )
    height, width = maps[0].shape[-2:]
    position = maps[0][:, :, height // 2, width // 2]
    (gradient,) = torch.autograd.grad((position * noise(*position.shape)).sum(), images)
    seen = gradient.ne(0).flatten(0, 1).any(dim=0)
    rows = seen.any(dim=1).nonzero().flatten().tolist()
    columns = seen.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        raise ArgumentError(f"receptive field: no pixel changes layer {layer!r}")
    if min(rows[0], columns[0]) == 0 or max(rows[-1], columns[-1]) == image_size - 1:
        raise ArgumentError(
            f"receptive field: that of layer {layer!r} reaches the edge of the {image_size}-pixel "
            "images; use a larger image_size"
        )
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
