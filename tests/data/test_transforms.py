import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from rebias_dist.config.files import validate
from rebias_dist.data.transforms import (
    EvalTransform,
    TrainTransform,
    eval_transform,
    identity,
    random_crop,
)
from rebias_dist.errors import ConfigError


def _image(height=60, width=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@given(st.integers(0, 2**64 - 1), st.integers(1, 600), st.integers(1, 600))
def test_crops_lie_inside(key, height, width):
    crop = random_crop(key, height, width)
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert min(crop.height, crop.width) >= 1


def test_crops_reach_every_edge():
    crops = [random_crop(k, 4, 4) for k in range(500)]
    corners = {(c.top, c.left) for c in crops if c.height == c.width == 3}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_crops_have_torchvisions_distribution():
    # The same two-sample Kolmogorov-Smirnov distance would come from two runs of torchvision.
    count, size = 4000, (375, 500)
    torch.manual_seed(0)
    transform, blank = v2.RandomResizedCrop(224), torch.empty(3, *size, device="meta")
    params = [transform.make_params([blank]) for _ in range(count)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    crops = [random_crop(k * 0x9E3779B97F4A7C15 % 2**64, *size) for k in range(count)]
    ours = np.array([[c.top, c.left, c.height, c.width] for c in crops])
    largest = 0.0
    for column in range(4):
        values = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        cdf = [
            np.searchsorted(np.sort(a[:, column]), values, side="right") / count
            for a in (ours, theirs)
        ]
        largest = max(largest, float(np.abs(cdf[0] - cdf[1]).max()))
    flips = np.mean([c.flip for c in crops])
    print(f"largest KS distance {largest:.4f} (0.0436 is the 0.1 % level), flipped {flips:.3f}")
    assert largest < 0.0436
    assert abs(flips - 0.5) < 0.03


@pytest.mark.parametrize("shape", [(10, 500), (500, 10)])
def test_fallback_is_torchvisions(shape):
    crop = random_crop(1, *shape)
    params = v2.RandomResizedCrop(8).make_params([torch.empty(3, *shape, device="meta")])
    assert crop.height == params["height"]
    assert crop.width == params["width"]
    assert abs(crop.top - params["top"]) <= 1
    assert abs(crop.left - params["left"]) <= 1


def test_keyed_by_seed_epoch_and_sample():
    image = _image()
    first = TrainTransform(24, seed=5)(image, 2, 77)
    assert first.shape == (3, 24, 24)
    assert first.dtype == torch.uint8
    torch.manual_seed(99)
    assert torch.equal(first, TrainTransform(24, seed=5)(image.clone(), 2, 77))
    others = [
        TrainTransform(24, seed=6)(image, 2, 77),
        TrainTransform(24, seed=5)(image, 3, 77),
        TrainTransform(24, seed=5)(image, 2, 78),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    TrainTransform(24, seed=5)(_image(), 0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (32, 32), (20, 90)])
def test_eval_is_resize_and_centre_crop(height, width):
    image = _image(height, width)
    reference = v2.Compose([v2.Resize(40), v2.CenterCrop(32)])
    out = EvalTransform(40, 32)(image, 0, 0)
    assert out.dtype == torch.uint8
    assert torch.equal(out, reference(image))
    assert torch.equal(out, EvalTransform(40, 32)(image, 9, 9))


@given(st.integers(2, 48), st.integers(2, 48), st.integers(1, 40), st.integers(1, 40))
def test_no_evaluation_has_a_black_frame(crop, resize, height, width):
    values = {"data": {"augmentation": "crop_flip", "crop": crop, "resize": resize}}
    if crop > resize:
        named = rf"^data\.crop: {crop} exceeds data\.resize {resize}, .*; set data\.resize to"
        with pytest.raises(ConfigError, match=named):
            validate(values)
        # A recorded run can still be read.
        assert validate(values, own_method=False).data.crop == crop
    else:
        white = torch.full((3, height, width), 255, dtype=torch.uint8)
        assert eval_transform(validate(values).data)(white).min() == 255
    assert validate({"data": {**values["data"], "augmentation": "none"}}).data.crop == crop


@pytest.mark.parametrize("side", ["crop", "resize"])
def test_images_of_one_pixel_are_refused(side):
    # torch 2.14 fails where it resizes three contiguous uint8 channels to one pixel.
    with pytest.raises(ConfigError, match=rf"^data\.{side}: 1: .*2"):
        validate({"data": {"augmentation": "crop_flip", side: 1}})


def test_identity():
    image = _image()
    assert identity(image, 1, 2) is image
