"""Augmentation keyed by (seed, epoch, sample): the same for f and g, on any rank and worker.

The operations are torchvision's; only the numbers that decide them are drawn here.

Images go in and out as uint8 [3, H, W]; they are normalised later, on the device. Their memory
may be interleaved, as decoders write it: torchvision resizes it in half the time, to the same
pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from data_shards.ordering import derive, splitmix64
from rebias_dist.config.data import AugmentConfig, DataConfig

# Random resized crop (Szegedy et al., "Going deeper with convolutions", 2015), with the aspect
# ratios of torchvision's RandomResizedCrop.
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10
_CROP_DRAWS = 1 + 4 * _TRIES


class Transform(Protocol):
    """Turns a decoded image, uint8 [3, H, W], into the networks' input, uint8 [3, h, w]."""

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """Return the image as the networks see it.

        ``key`` tells the views of the samples apart: the epoch, the sample's id, and more where
        the loader returns a sample more than once in an epoch.
        """
        ...


def identity(image: Tensor, *key: int) -> Tensor:
    """Return the image unchanged (for Biased-MNIST)."""
    return image


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def uniform(key: int, start: int, count: int) -> NDArray[np.float64]:
    """Return draws number ``start`` to ``start + count - 1`` of ``key``, each in [0, 1).

    The upper 53 bits of splitmix64 give the same numbers with every library version.
    """
    bits = splitmix64(key, np.arange(start, start + count)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def random_crop(key: int, height: int, width: int, smallest: float = 0.08) -> Crop:
    """Return the crop that the 64-bit ``key`` determines for an image of this size.

    The area is uniform in ``smallest``..1 of the image, the aspect ratio log-uniform in 3/4..4/3,
    the position uniform. After ten draws that do not fit it is the largest centred crop of an
    allowed ratio. It is mirrored with probability 1/2.
    """
    draws = uniform(key, 0, _CROP_DRAWS)
    flip = bool(draws[0] < 0.5)
    for area_draw, ratio_draw, top_draw, left_draw in draws[1:].reshape(_TRIES, 4).tolist():
        area = height * width * (smallest + (1 - smallest) * area_draw)
        ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio_draw)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1))
            return Crop(top, left, h, w, flip)
    h = min(height, round(width / math.exp(_LOG_RATIO[0])))
    w = min(width, round(height * math.exp(_LOG_RATIO[1])))
    return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of training images, keyed by ``seed``.

    First a random resized crop to ``size`` x ``size`` and a horizontal flip, unless ``size`` is
    None, then what ``augment`` says.
    """

    size: int | None
    seed: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """Return the image that (seed, key) determine, uint8 [3, size, size]."""
        state = derive("augment", self.seed, *key)
        if self.size is not None:
            height, width = image.shape[-2:]
            crop = random_crop(state, height, width, self.augment.crop_scale)
            image = F.resized_crop(
                image, crop.top, crop.left, crop.height, crop.width, [self.size, self.size]
            )
            image = F.horizontal_flip(image) if crop.flip else image
        return self._changed(image, state) if self.augment.changes else image

    def _changed(self, image: Tensor, state: int) -> Tensor:
        # Each number has its place among the draws, so no option changes what another one does.
        draws = uniform(state, _CROP_DRAWS, 11 + 2 * self.augment.rand_augment)
        angle, jitters, grays = draws[:3].tolist()
        if self.augment.rotation:
            image = F.rotate(image, (2 * angle - 1) * self.augment.rotation)
        for which, sign in draws[11:].reshape(-1, 2).tolist():
            name = RAND_AUGMENT[int(which * len(RAND_AUGMENT))]
            level = self.augment.rand_magnitude / 30
            image = rand_augment(image, name, level if sign < 0.5 else -level)
        if jitters < self.augment.jitter_probability:
            image = jitter(image, draws[3:7].tolist(), draws[7:11].tolist(), self.augment)
        if grays < self.augment.grayscale_probability:
            image = F.rgb_to_grayscale(image, num_output_channels=3)
        return image


def jitter(
    image: Tensor, draws: Sequence[float], order: Sequence[float], augment: AugmentConfig
) -> Tensor:
    """Change brightness, contrast, saturation and hue, as torchvision's ColorJitter does.

    ``draws``, in [0, 1), decide how much each of them changes, and ``order`` which comes first.
    """

    def factor(strength: float, draw: float) -> float:
        least = max(0.0, 1 - strength)
        return least + (1 + strength - least) * draw

    for _, which in sorted(zip(order, range(4), strict=True)):
        draw = draws[which]
        if which == 0 and augment.brightness:
            image = F.adjust_brightness(image, factor(augment.brightness, draw))
        elif which == 1 and augment.contrast:
            image = F.adjust_contrast(image, factor(augment.contrast, draw))
        elif which == 2 and augment.saturation:
            image = F.adjust_saturation(image, factor(augment.saturation, draw))
        elif which == 3 and augment.hue:
            image = F.adjust_hue(image, (2 * draw - 1) * augment.hue)
    return image


RAND_AUGMENT = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
"""The operations of RandAugment (Cubuk et al. 2020), in torchvision's order."""


def rand_augment(image: Tensor, name: str, level: float) -> Tensor:
    """Return the image after one operation of RandAugment, as torchvision scales it.

    ``level`` is from -1 to 1; where an operation has no direction, its sign means nothing.
    """
    height, width = image.shape[-2:]
    shear = math.degrees(math.atan(0.3 * level))
    changed: Tensor
    match name:
        case "shear_x":
            changed = F.affine(image, 0.0, [0, 0], 1.0, [shear, 0.0], center=[0.0, 0.0])
        case "shear_y":
            changed = F.affine(image, 0.0, [0, 0], 1.0, [0.0, shear], center=[0.0, 0.0])
        case "translate_x":
            changed = F.affine(image, 0.0, [int(150 / 331 * width * level), 0], 1.0, [0.0, 0.0])
        case "translate_y":
            changed = F.affine(image, 0.0, [0, int(150 / 331 * height * level)], 1.0, [0.0, 0.0])
        case "rotate":
            changed = F.rotate(image, 30 * level)
        case "brightness":
            changed = F.adjust_brightness(image, 1 + 0.9 * level)
        case "color":
            changed = F.adjust_saturation(image, 1 + 0.9 * level)
        case "contrast":
            changed = F.adjust_contrast(image, 1 + 0.9 * level)
        case "sharpness":
            changed = F.adjust_sharpness(image, 1 + 0.9 * level)
        case "posterize":
            changed = F.posterize(image, round(8 - 4 * abs(level)))
        case "solarize":
            changed = F.solarize(image, 255 * (1 - abs(level)))
        case "autocontrast":
            changed = F.autocontrast(image)
        case "equalize":
            changed = F.equalize(image)
        case _:
            changed = image
    return changed


@dataclass(frozen=True)
class EvalTransform:
    """Resize the short side to ``resize``, then take the central ``crop`` x ``crop`` pixels."""

    resize: int
    crop: int

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """Return uint8 [3, crop, crop], whatever the key."""
        resized: Tensor = F.resize(image, [self.resize])
        return F.center_crop(resized, [self.crop, self.crop])  # type: ignore[no-any-return]


def train_transform(data: DataConfig, seed: int) -> Transform:
    """Return the augmentation of the training samples, keyed by ``seed``."""
    if data.augmentation == "none" and not data.augment.changes:
        return identity
    size = None if data.augmentation == "none" else data.crop
    return TrainTransform(size, seed, data.augment)


def eval_transform(data: DataConfig) -> Transform:
    """Return the transform of evaluation: the same in every epoch."""
    return identity if data.augmentation == "none" else EvalTransform(data.resize, data.crop)
