"""The average of a map: torch's value and gradient, in the map's memory format."""

import pytest
import torch

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


def test_the_gradient_can_be_differentiated_again():
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(average_pool, (maps,))
    assert torch.autograd.gradgradcheck(average_pool, (maps,))


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
def test_the_gradient_has_the_format_of_the_map(layout):
    # Otherwise the step has the same numbers and takes up to half as long again.
    source = torch.randn(4, 6, 5, 5, requires_grad=True)
    maps = source.contiguous(memory_format=layout).square()
    strides = []
    maps.register_hook(lambda gradient: strides.append(gradient.stride()))
    average_pool(maps).square().sum().backward()
    assert strides == [maps.stride()]
