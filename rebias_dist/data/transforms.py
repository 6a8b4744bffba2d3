"""Augmentation keyed by (seed, epoch, sample): the same for f and g, on any rank and worker.

Images go in and out as uint8 [3, H, W]; they are normalised later, on the device. Their memory
may be interleaved, as decoders write it: torchvision resizes it in half the time, to the same
pixels.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from data_shards.ordering import derive, splitmix64
from rebias_dist.config.schema import DataConfig

# Random resized crop (Szegedy et al., "Going deeper with convolutions", 2015), with the default
# ranges of torchvision's RandomResizedCrop.
_AREA = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10


class Transform(Protocol):
    """Turns a decoded image, uint8 [3, H, W], into the networks' input, uint8 [3, h, w]."""

    def __call__(self, image: Tensor, epoch: int, sample: int) -> Tensor:
        """Return the image of ``sample`` (its id) as the networks see it in ``epoch``."""
        ...


def identity(image: Tensor, epoch: int, sample: int) -> Tensor:
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


def random_crop(key: int, height: int, width: int) -> Crop:
    """Return the crop that the 64-bit ``key`` determines for an image of this size.

    The area is uniform in 0.08..1 of the image, the aspect ratio log-uniform in 3/4..4/3, the
    position uniform. After ten draws that do not fit it is the largest centred crop of an
    allowed ratio. It is mirrored with probability 1/2.
    """
    # The upper 53 bits of splitmix64 give uniform doubles in [0, 1), with every library version.
    draws = (splitmix64(key, np.arange(1 + 4 * _TRIES)) >> np.uint64(11)) * 2.0**-53
    flip = bool(draws[0] < 0.5)
    for area_draw, ratio_draw, top_draw, left_draw in draws[1:].reshape(_TRIES, 4).tolist():
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * area_draw)
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
    """Random resized crop to ``size`` x ``size`` and horizontal flip, keyed by ``seed``."""

    size: int
    seed: int

    def __call__(self, image: Tensor, epoch: int, sample: int) -> Tensor:
        """Return the crop keyed by (seed, epoch, sample), uint8 [3, size, size]."""
        height, width = image.shape[-2:]
        crop = random_crop(derive("augment", self.seed, epoch, sample), height, width)
        resized: Tensor = F.resized_crop(
            image, crop.top, crop.left, crop.height, crop.width, [self.size, self.size]
        )
        return F.horizontal_flip(resized) if crop.flip else resized


@dataclass(frozen=True)
class EvalTransform:
    """Resize the short side to ``resize``, then take the central ``crop`` x ``crop`` pixels."""

    resize: int
    crop: int

    def __call__(self, image: Tensor, epoch: int, sample: int) -> Tensor:
        """Return uint8 [3, crop, crop]."""
        resized: Tensor = F.resize(image, [self.resize])
        return F.center_crop(resized, [self.crop, self.crop])  # type: ignore[no-any-return]


def train_transform(data: DataConfig, seed: int) -> Transform:
    """Return the augmentation of the training samples, keyed by ``seed``."""
    return identity if data.augmentation == "none" else TrainTransform(data.crop, seed)


def eval_transform(data: DataConfig) -> Transform:
    """Return the transform of evaluation: the same in every epoch."""
    return identity if data.augmentation == "none" else EvalTransform(data.resize, data.crop)
