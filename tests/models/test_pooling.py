"""The average of a map: torch's value and gradient, in the map's memory format."""

import pytest
import torch
from torch import nn

from rebias_dist import models
from rebias_dist.models.pooling import average_pool

FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 8, 1, 1), (0, 4, 3, 3), (2, 1, 5, 5)])
def test_value_and_gradient_are_those_of_the_mean(shape, dtype, layout):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.randn(shape[:2], generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for pool in (average_pool, lambda maps: maps.mean(dim=(2, 3))):
        maps = values.clone().contiguous(memory_format=layout).requires_grad_()
        pooled = pool(maps)
        (pooled * weights).sum().backward()
        found.append((pooled.detach(), maps.grad))
    for ours, torchs in zip(*found, strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("simple_convnet", {}, "extracter.11"),
        ("bagnet18", {}, "layer4.1"),
        ("tests.models.test_pooling:OneMap", {"feature": "map"}, "map"),
    ],
)
def test_the_gradient_of_the_last_map_has_its_format(name, options, last, layout):
    # Otherwise the step has the same numbers and is slower.
    network = models.build(name, num_classes=3, **options).to(memory_format=layout)
    strides = []

    def watch(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: strides.append((gradient.stride(), output.stride())))

    modules = {where.removeprefix("network."): module for where, module in network.named_modules()}
    modules[last].register_forward_hook(watch)
    _, features = network(torch.randn(2, 3, 24, 24).contiguous(memory_format=layout))
    features.square().sum().backward()
    ((of_gradient, of_map),) = strides
    assert of_gradient == of_map


class OneMap(nn.Module):
    """A network of a user's, whose map is its features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 8, 3)
        self.last = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.map(images).amax(dim=(2, 3)))
