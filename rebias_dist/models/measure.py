"""Properties of a network that are measured rather than derived."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rebias_dist.errors import ConfigError


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, each as it was afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def feature_dim(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Width d of the features ``[N, d]`` for images of ``image_shape`` (C, H, W).

    Found by one forward pass in eval mode; changes neither the network nor any random
    state.
    """
    parameter = next(network.parameters())
    images = torch.zeros((1, *image_shape), device=parameter.device, dtype=parameter.dtype)
    with _evaluating(network), torch.no_grad():
        features: Tensor = network(images)[1]
    return features.shape[1]


def receptive_field(
    network: nn.Module, layer: str, *, image_size: int = 64, channels: int = 3, trials: int = 8
) -> tuple[int, int]:
    """Pixels (height, width) that can change the middle position of a layer's map.

    Measured: the bounding box of the pixels with a non-zero gradient of that position,
    united over ``trials`` random images and random mixtures of the map's channels, for
    a ReLU that is shut hides what lies behind it. In eval mode, for batch statistics
    couple all pixels. Changes neither the network nor any random state.

    Args:
        network: returns ``(logits, features)`` from ``[N, channels, H, W]``.
        layer: name of a layer that returns a map ``[N, C, h, w]``, such as ``layer4``.
        image_size: side of the square images; must exceed the field.
        channels: of the images.
        trials: number of images.

    Raises:
        ConfigError: no such layer, it returns no map, or the field reaches the edge.
    """
    try:
        module = network.get_submodule(layer)
    except AttributeError as error:
        raise ConfigError(f"receptive field: the network has no layer {layer!r}") from error
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
        raise ConfigError(f"receptive field: layer {layer!r} does not return one [N, C, h, w] map")
    height, width = maps[0].shape[-2:]
    position = maps[0][:, :, height // 2, width // 2]
    (gradient,) = torch.autograd.grad((position * noise(*position.shape)).sum(), images)
    seen = gradient.ne(0).flatten(0, 1).any(dim=0)
    rows = seen.any(dim=1).nonzero().flatten().tolist()
    columns = seen.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        raise ConfigError(f"receptive field: no pixel changes layer {layer!r}")
    if min(rows[0], columns[0]) == 0 or max(rows[-1], columns[-1]) == image_size - 1:
        raise ConfigError(
            f"receptive field: that of layer {layer!r} reaches the edge of images of "
            f"{image_size} pixels; measure it with a larger image_size"
        )
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
