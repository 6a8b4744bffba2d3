"""Find the split and class of a folder from the names on the way to it."""

import re
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.sources.datasets import PUBLISHED_MD5, SELECTION, TEST, TRAIN, VAL, Dataset

# Names of folders for splits; in the name of an archive they may be one of several words.
_SPLIT_NAMES: Final = {
    **{name: name for name in (TRAIN, SELECTION, VAL, TEST)},
    **{"training": TRAIN, "validation": VAL},
}
_WNID: Final = re.compile(r"n\d{8}")
_CORRUPTION: Final = re.compile(r"[a-z0-9_]+")
_SEVERITIES: Final = frozenset("12345")
# Those of ImageNet-C: noise, blur, weather, digital, and the four extra ones.
_CORRUPTIONS: Final = {
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
# Hugging Face's archives of ILSVRC2012.
_HUGGING_FACE: Final = re.compile(r"(?:train|val|test)_images(?:_\d+)?")
# Kaggle's folders without images.
_NO_IMAGES: Final = frozenset({"Annotations", "ImageSets"})


class Place(NamedTuple):
    """Where images belong.

    ``split`` is None if no name says it, ``wnid`` is "" if no folder is a class. ``known``:
    the class is one of the data set. ``deeper``: they lie in a folder below the class folder.
    """

    split: str | None
    wnid: str
    known: bool
    deeper: bool = False


class Layout:
    """Reads names for one data set, one wanted split (None: all) and one source."""

    def __init__(self, dataset: Dataset, split: str | None, source: Path) -> None:
        self._dataset = dataset
        self._split = split
        # The wnids that are not in the data set, by split. Such folders are not entered.
        self.outside: dict[str | None, set[str]] = {}
        # The splits of what was skipped: another one is wanted, or the data set has no such split.
        self.other_splits: set[str] = set()
        # Whether something was skipped because another corruption is wanted.
        self.skipped = False
        # The name of the folder or archive of each split that lies directly in the source.
        self.entered: dict[str, str] = {}
        real = source.resolve()
        self._context = real.parts[-2:] if real.is_dir() else ()

    @property
    def default_split(self) -> str | None:
        """The split of a folder whose names do not say it: the wanted one, or the source's."""
        if self._split is not None or self._dataset.corrupted:
            return self._split
        return self.source_split

    @property
    def source_split(self) -> str | None:
        """The split that the name of the source itself says."""
        return self._named_split(self._context)

    @property
    def names_split(self) -> bool:
        """Whether the source's own name says a split, not only that of the folder above it."""
        return self._named_split(self._context[-1:]) is not None

    def means_images(self, name: str) -> bool:
        """Return whether an archive of this name, without endings, holds a split or a class."""
        return (
            name in self._dataset.class_map.labels
            or name.lower() in _SPLIT_NAMES
            or f"{name}.tar" in PUBLISHED_MD5
            or _HUGGING_FACE.fullmatch(name) is not None
        )

    def place(self, parts: tuple[str, ...]) -> Place:
        """Return where the images of the folder ``parts`` belong."""
        labels = self._dataset.class_map.labels
        for position in range(len(parts) - 1, -1, -1):
            name = _without_tar(parts[position])
            known = name in labels
            if known or _WNID.fullmatch(name):
                deeper = position < len(parts) - 1
                return Place(self._split_of(parts[:position]), name, known, deeper)
        if not parts and self._context and self._context[-1] in labels:
            # The source is itself a class folder.
            return Place(self._split_of(parts), self._context[-1], True)
        return Place(self._split_of(parts), "", False)

    def above(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the folder that holds the class folders on the way to ``parts``."""
        labels = self._dataset.class_map.labels
        known = (at for at, name in enumerate(parts) if _without_tar(name) in labels)
        return parts[: next(known, len(parts))]

    def wanted(self, parts: tuple[str, ...]) -> bool:
        """Return whether a folder or tar may hold images of the wanted split."""
        name = parts[-1]
        if name in _NO_IMAGES:
            return False
        if self._dataset.corrupted and self._split and self._other_corruption(parts, self._split):
            self.skipped = True
            return False
        place = self.place(parts)
        if not self.takes(place.split):
            return False
        if place.wnid and not place.known:
            self.outside.setdefault(place.split, set()).add(place.wnid)
            return False
        if place.split is not None and len(parts) == 1:
            self.entered.setdefault(place.split, name)
        return True

    def takes(self, split: str | None) -> bool:
        """Return whether images of ``split`` are wanted; None is an unnamed split."""
        if split is None:
            return True
        known = not self._dataset.splits or split in self._dataset.splits
        taken = known if self._split is None else split == self._split
        if not taken:
            self.other_splits.add(split)
        return taken

    def _split_of(self, parts: tuple[str, ...]) -> str | None:
        if self._dataset.corrupted:
            before = self._context + parts
            if len(before) >= 2 and before[-1] in _SEVERITIES and _CORRUPTION.fullmatch(before[-2]):
                return f"{before[-2]}-{before[-1]}"
            return None
        if len(self._dataset.splits) == 1:
            return self._dataset.splits[0]
        return self._named_split(parts)

    def _named_split(self, parts: tuple[str, ...]) -> str | None:
        for part in reversed(parts):
            name = _without_tar(part).lower()
            if name in _SPLIT_NAMES:
                return _SPLIT_NAMES[name]
            if name != part.lower():
                words = {_SPLIT_NAMES.get(word) for word in re.split(r"[^a-z]+", name)} - {None}
                if len(words) == 1:
                    return words.pop()
            if part == self._split:
                return part
        return None

    def _other_corruption(self, parts: tuple[str, ...], split: str) -> bool:
        corruption, _, severity = split.rpartition("-")
        path = self._context + parts
        for name, below in zip(path, (*path[1:], ""), strict=True):
            if name in _CORRUPTIONS and name != corruption:
                return True
            if name == corruption and below in _SEVERITIES and below != severity:
                return True
        return False


def _without_tar(name: str) -> str:
    return name[:-4] if name[-4:].lower() == ".tar" else name
