"""Rotation, colours and RandAugment: torchvision's operations, with numbers of our own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data_shards.ordering import derive
from rebias_dist.config.data import AugmentConfig, DataConfig
from rebias_dist.config.files import validate
from rebias_dist.data.transforms import (
    RAND_AUGMENT,
    TrainTransform,
    identity,
    jitter,
    rand_augment,
    train_transform,
    uniform,
)
from rebias_dist.errors import ConfigError

# The settings of the authors of BiasCon and SoftCon: Biased-MNIST, and photographs.
JITTER = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "jitter_probability": 0.8,
}  # fmt: skip
DIGITS = AugmentConfig(rotation=20.0, **JITTER)
PHOTOGRAPHS = AugmentConfig(crop_scale=0.2, grayscale_probability=0.2, **JITTER)


def _image(height=40, width=50, seed=0):
    """A smooth image with noise, as HWC memory, which is what decoders give."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((1, 3, 6, 6), generator=generator)
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0]
    noisy = 200 * smooth + 40 * torch.rand((3, height, width), generator=generator)
    return noisy.permute(1, 2, 0).to(torch.uint8).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("magnitude", [1, 9, 17, 30])
def test_every_operation_is_torchvisions(magnitude):
    theirs = v2.RandAugment(num_ops=1, magnitude=magnitude)
    image, seen = _image(), set()
    signed = {name for name in RAND_AUGMENT[1:10]}
    for seed in range(200):
        # The numbers that torchvision is going to draw.
        torch.manual_seed(seed)
        name = RAND_AUGMENT[int(torch.randint(len(RAND_AUGMENT), ()))]
        negative = name in signed and bool(torch.rand(()) <= 0.5)
        torch.manual_seed(seed)
        expected = theirs(image)
        level = (-1 if negative else 1) * magnitude / 30
        different = rand_augment(image, name, level).int() - expected.int()
        # torchvision's strengths are float32, and pixels are truncated.
        assert (different != 0).float().mean() < 0.01, (name, level)
        seen.add((name, negative))
    assert len(seen) == 14 + 9


@given(draws=st.lists(st.floats(0, 1), min_size=4, max_size=4), order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_jitter_is_torchvisions(draws, order):
    b, c, s, h = draws
    params = {
        "fn_idx": torch.tensor(order),
        "brightness_factor": 0.6 + 0.8 * b,
        "contrast_factor": 0.6 + 0.8 * c,
        "saturation_factor": 1.5 * s,  # a strength above 1 stops at 0
        "hue_factor": (2 * h - 1) * 0.1,
    }
    theirs = v2.ColorJitter(0.4, 0.4, (0, 2.5), 0.1).transform(_image(), params)
    config = AugmentConfig(brightness=0.4, contrast=0.4, saturation=1.5, hue=0.1)
    place = [order.index(which) / 4 for which in range(4)]
    ours = jitter(_image(), [b, c, s * 0.6, h], place, config)
    # The factors differ in their last bit, and the pixels are truncated.
    different = (ours.int() - theirs.int()).abs()
    assert (different > 1).float().mean() < 0.01
    assert different.float().mean() < 0.05


def test_the_order_of_the_operations():
    # Each number has its own place, so an option does not change what another one does.
    image, key = _image(), (3, 14)
    rotated = TrainTransform(None, 5, AugmentConfig(rotation=20.0))(image, *key)
    angle = uniform(derive("augment", 5, *key), 41, 1)[0]
    assert torch.equal(rotated, F.rotate(image, 20 * (2 * angle - 1)))
    both = AugmentConfig(rotation=20.0, grayscale_probability=1.0)
    found = TrainTransform(None, 5, both)(image, *key)
    assert torch.equal(found, F.rgb_to_grayscale(rotated, num_output_channels=3))
    # The crop is that of a run without further augmentation.
    cropped = TrainTransform(24, 5)(image, *key)
    bright = TrainTransform(24, 5, AugmentConfig(brightness=0.5))(image, *key)
    draw = uniform(derive("augment", 5, *key), 44, 1)[0]
    assert torch.equal(bright, F.adjust_brightness(cropped, 0.5 + draw))


@pytest.mark.parametrize(
    ("size", "augment"),
    [(None, DIGITS), (24, PHOTOGRAPHS), (None, AugmentConfig(rand_augment=3))],
)
def test_keyed_by_everything_and_nothing_else(size, augment):
    image, transform = _image(), TrainTransform(size, 5, augment)
    before = torch.get_rng_state()
    # A few keys together, because one may draw no change.
    first = [transform(image, 2, sample) for sample in range(77, 81)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    for other, sample in zip(first, range(77, 81), strict=True):
        assert other.dtype == torch.uint8
        assert other.shape == ((3, 24, 24) if size else image.shape)
        again = TrainTransform(size, 5, augment)(image.clone(), 2, sample)
        assert torch.equal(other, again)
    for other, key in ((transform, (3,)), (TrainTransform(size, 6, augment), (2,))):
        found = [other(image, *key, sample) for sample in range(77, 81)]
        assert not all(map(torch.equal, first, found))
    second = [transform(image, 2, sample, 1) for sample in range(77, 81)]
    assert not all(map(torch.equal, first, second))


def test_probabilities_are_met():
    image, count = _image(12, 12), 600
    config = AugmentConfig(hue=0.5, jitter_probability=0.8, grayscale_probability=0.2)
    found = [TrainTransform(None, 1, config)(image, 0, sample) for sample in range(count)]
    gray = np.mean([bool((x[0] == x[1]).all()) for x in found])
    same = np.mean([torch.equal(x, image) for x in found])
    operations = AugmentConfig(rand_augment=1, rand_magnitude=30)
    full = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    full[:, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    found = [TrainTransform(None, 1, operations)(full, 0, sample) for sample in range(count)]
    unchanged = np.mean([torch.equal(x, full) for x in found])
    print(f"gray {gray:.3f}, same {same:.3f}, unchanged {unchanged:.3f}")
    assert abs(gray - 0.2) < 0.06  # about four standard deviations
    assert abs(same - 0.2 * 0.8) < 0.06
    # 'identity', and 'autocontrast' where all values occur.
    assert abs(unchanged - 2 / 14) < 0.06


def test_crops_cover_at_least_their_scale():
    config = DataConfig(augmentation="crop_flip", crop=8, augment=AugmentConfig(crop_scale=1.0))
    square = torch.arange(64, dtype=torch.uint8).view(8, 8).expand(3, 8, 8)
    transform = train_transform(config, 0)
    whole = {transform(square, 0, sample).sum().item() for sample in range(20)}
    assert whole == {square.sum().item()}


def test_the_draws_are_frozen():
    # A change here would make every stored run resume with another augmentation.
    found = uniform(derive("augment", 1, 2, 3), 41, 3).tolist()
    assert found == [0.5102837548642398, 0.9820559070567337, 0.8432719809441038]


def test_without_augmentation_an_image_is_left_alone():
    assert train_transform(DataConfig(), 0) is identity
    assert train_transform(DataConfig(augment=AugmentConfig(jitter_probability=0.5)), 0) is identity


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"augment": {"rotation": 0.0, "jitter_probability": 1.0}},
        {"augment": {"hue": 0.1, "jitter_probability": 0.0}},
        {"augment": {"crop_scale": 0.5}},
    ],
)
def test_two_equal_views_are_refused(data):
    with pytest.raises(ConfigError, match=r"^data\.views: 2 views would be the same image; set"):
        validate({"data": {**data, "views": 2}})


@pytest.mark.parametrize("data", [{"augmentation": "crop_flip"}, {"augment": {"rotation": 1.0}}])
def test_two_views_with_augmentation(data):
    method = {"name": "biascon"}
    assert validate({"method": method, "data": {**data, "views": 2}}).data.views == 2
