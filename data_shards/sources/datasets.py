"""The ImageNet data sets by name, with their classes, splits and published sizes."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.classes import ClassMap, load_class_map, shipped_class_map
from data_shards.errors import UsageError
from data_shards.format.manifest import Normalize
from data_shards.sources.folders import IMAGE_ENDINGS
from data_shards.sources.listing import IMAGENET_NORMALIZE

BIASED_MNIST = "biased_mnist"
TRAIN, SELECTION, VAL, TEST = "train", "selection", "val", "test"

# One split for each severity of each corruption (Hendrycks & Dietterich, ICLR 2019).
_CORRUPTED_SPLIT = re.compile(r"[a-z0-9_]+-[1-5]")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# md5 of the archives as their makers published them.
PUBLISHED_MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "imagenet-a.tar": "c3e55429088dc681f30d81f4726b6595",
}


@dataclass(frozen=True)
class Dataset:
    """A data set of ImageNet's kind.

    ``splits`` are those that it can have. A ``corrupted`` one has splits named
    ``<corruption>-<severity>`` instead, as ImageNet-C does. ``expected`` is the known number of
    images by split; ``train`` includes the selection images. ``expected_each`` is the number
    of images in every corrupted split. ``absent`` are wnids that its makers left out; their
    absence is not reported. ``endings`` are those of the files that are taken as images.
    """

    name: str
    summary: str
    class_map: ClassMap
    splits: tuple[str, ...] = ()
    corrupted: bool = False
    expected: Mapping[str, int] = field(default_factory=dict)
    expected_each: int | None = None
    absent: frozenset[str] = frozenset()
    normalize: Normalize = IMAGENET_NORMALIZE
    endings: frozenset[str] = IMAGE_ENDINGS

    @property
    def can_train(self) -> bool:
        """Whether there may be a split ``train``, of which ``selection`` is a part."""
        return not self.corrupted and (not self.splits or TRAIN in self.splits)

    def order(self, splits: Collection[str]) -> list[str]:
        """Return ``splits`` in the order in which they are converted."""
        rank = {name: number for number, name in enumerate((TRAIN, SELECTION, VAL, TEST))}
        return sorted(splits, key=lambda split: (rank.get(split, len(rank)), split))

    def check_split(self, split: str) -> None:
        """Raise UsageError if the data set has no such split."""
        if self.corrupted:
            if not _CORRUPTED_SPLIT.fullmatch(split):
                raise UsageError(
                    f"--split {split}: a split of {self.name} is <corruption>-<severity>, "
                    "such as fog-3"
                )
        elif self.splits and split not in self.splits:
            raise UsageError(f"--split {split}: {self.name} has {', '.join(self.splits)}")
        elif not _NAME.fullmatch(split):
            raise UsageError(
                f"--split {split}: a name may have only small letters, digits, '_' and '-'"
            )

    def expected_count(self, split: str) -> int | None:
        """Return the published number of images of a split, None if it is not known."""
        return self.expected_each if self.corrupted else self.expected.get(split)


SUMMARIES = {
    "imagenet1k": "ImageNet of ILSVRC2012, 1,000 classes",
    "imagenet9": "9-class ImageNet, 42 synsets",
    "imagenet-a": "ImageNet-A, 200 classes",
    "imagenet9-a": "the 21 synsets of ImageNet-A that 9-class ImageNet has, 9 classes",
    "imagenet-c": "ImageNet-C, a split for each severity of each corruption",
    "imagenet9-c": "ImageNet-C in 9 classes",
}


def dataset(name: str) -> Dataset:
    """Return a data set of :data:`SUMMARIES` by its name."""
    if name not in SUMMARIES:
        raise UsageError(f"there is no data set {name}; there are {', '.join(SUMMARIES)}")
    nine = name.startswith("imagenet9")
    class_map = shipped_class_map("imagenet9" if nine else "imagenet1k")
    summary = SUMMARIES[name]
    if name.endswith("-c"):
        return Dataset(
            name, summary, class_map, corrupted=True, expected_each=2_100 if nine else 50_000
        )
    if name == "imagenet-a":
        adversarial = shipped_class_map("imagenet_a")
        return Dataset(name, summary, adversarial, (TEST,), expected={TEST: 7_500})
    if name == "imagenet9-a":
        absent = class_map.labels.keys() - shipped_class_map("imagenet_a").labels.keys()
        return Dataset(name, summary, class_map, (TEST,), absent=frozenset(absent))
    expected = {TRAIN: 54_600, VAL: 2_100} if nine else {TRAIN: 1_281_167, VAL: 50_000}
    return Dataset(name, summary, class_map, (TRAIN, SELECTION, VAL), expected=expected)


def check_name(name: str) -> None:
    """Raise UsageError if another data set cannot have this name.

    A data set of the name would be compared with published figures. There are none for those of
    :mod:`data_shards.sources.presets`, so a table of their images may have their names.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name}: a name may have only small letters, digits, '_' and '-'")
    if name in (*SUMMARIES, BIASED_MNIST):
        raise UsageError(f"--name {name}: is the name of another data set; give another name")


def custom(name: str, classes: Path) -> Dataset:
    """Return another data set, made from a class-map file; its splits may have any name."""
    check_name(name)
    return Dataset(name, f"classes of {classes.name}", load_class_map(classes))
