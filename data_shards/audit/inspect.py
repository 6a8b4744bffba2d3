"""Describe a split in figures and in pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from data_shards.format.attributes import load_attributes
from data_shards.format.manifest import NO_BIAS, Attribute, Excluded, Manifest
from data_shards.format.samples import read_image, walk_facts
from data_shards.images.sheets import Strip, sheet
from data_shards.ordering import permutation


@dataclass(frozen=True)
class Spread:
    """The least, the median and the largest of some numbers; zeros if there are none."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of ``values``."""
        return cls(min(values), median(values), max(values)) if len(values) else cls(0, 0, 0)

    def to_dict(self) -> dict[str, float]:
        """Return the fields ``min``, ``median`` and ``max``."""
        return {"min": self.least, "median": self.median, "max": self.most}


@dataclass(frozen=True)
class Inspection:
    """Figures of one split; lengths in pixels, sizes in bytes.

    ``class_counts`` is in the order of the labels, ``bias_counts`` a table label × bias, empty
    without biases; ``excluded`` counts the reasons of images that were left out. ``attributes``
    are those of the manifest, with their counts.
    """

    dataset: str
    split: str
    digest: str
    samples: int
    class_counts: Mapping[str, int]
    bias_counts: Sequence[Sequence[int]]
    attributes: Sequence[Attribute]
    formats: Mapping[str, int]
    widths: Spread
    heights: Spread
    image_bytes: Spread
    flags: Mapping[str, int]
    excluded: Mapping[str, int]
    left_out: Sequence[Excluded]
    shard_samples: Spread
    shard_bytes: Spread
    shards: int

    def to_dict(self) -> dict[str, object]:
        """Return the figures as plain values for JSON."""
        counts = list(self.class_counts.values())
        return {
            "dataset": self.dataset,
            "split": self.split,
            "digest": self.digest,
            "samples": self.samples,
            "classes": len(counts),
            "class_counts": dict(self.class_counts),
            "per_class": Spread.of(counts).to_dict(),
            "bias_counts": [list(row) for row in self.bias_counts],
            "attributes": [
                {**attribute.model_dump(mode="json"), "majority": majority(attribute)}
                for attribute in self.attributes
            ],
            "formats": dict(self.formats),
            "width": self.widths.to_dict(),
            "height": self.heights.to_dict(),
            "image_bytes": self.image_bytes.to_dict(),
            "flags": dict(self.flags),
            "excluded": sum(left_out.images or 1 for left_out in self.left_out),
            "excluded_reasons": dict(self.excluded),
            "shards": self.shards,
            "shard_samples": self.shard_samples.to_dict(),
            "shard_bytes": self.shard_bytes.to_dict(),
        }


def inspect_split(folder: Path, manifest: Manifest, index: NDArray[np.void]) -> Inspection:
    """Return the figures of a split that ``load_split`` has loaded; reads all its facts.

    DataShardsError if a shard or ``attributes.npy`` is damaged.
    """
    load_attributes(folder, manifest, index)
    widths, heights = [], []
    formats: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for facts in walk_facts(folder, manifest, index):
        widths.append(facts.size[0])
        heights.append(facts.size[1])
        formats[facts.extension] += 1
        flags.update(facts.flags)
    reasons: Counter[str] = Counter()
    for left_out in manifest.excluded:
        reasons.update(dict.fromkeys(left_out.reasons, left_out.images or 1))
    return Inspection(
        dataset=manifest.dataset,
        split=manifest.split,
        digest=manifest.digest,
        samples=manifest.samples,
        class_counts=dict(zip(manifest.classes, manifest.class_counts, strict=True)),
        bias_counts=_bias_counts(manifest, index),
        attributes=manifest.attributes,
        formats=dict(sorted(formats.items())),
        widths=Spread.of(widths),
        heights=Spread.of(heights),
        image_bytes=Spread.of(index["length"].tolist()),
        flags=dict(sorted(flags.items())),
        excluded=dict(sorted(reasons.items())),
        left_out=manifest.excluded,
        shard_samples=Spread.of([shard.count for shard in manifest.shards]),
        shard_bytes=Spread.of([shard.bytes for shard in manifest.shards]),
        shards=len(manifest.shards),
    )


def majority(attribute: Attribute) -> list[int | None]:
    """Return for each class the id of its most frequent value, the first of equal ones.

    None for a class without samples that have a value.
    """
    return [row.index(max(row)) if any(row) else None for row in attribute.counts]


def _bias_counts(manifest: Manifest, index: NDArray[np.void]) -> list[list[int]]:
    known = index[index["bias"] != NO_BIAS]
    if not len(known):
        return []
    table = np.zeros((len(manifest.classes), int(known["bias"].max()) + 1), dtype=np.int64)
    np.add.at(table, (known["label"], known["bias"]), 1)
    rows: list[list[int]] = table.tolist()
    return rows


def contact_sheet(
    folder: Path, manifest: Manifest, index: NDArray[np.void], *, per_class: int = 8
) -> bytes:
    """Return a PNG with up to ``per_class`` images of each class, always the same ones.

    The choice is a seeded draw among the keys of the class, so it does not depend on the shards.
    """
    strips = []
    order = np.argsort(index["key"], kind="stable")
    labels = index["label"][order]
    for label, name in enumerate(manifest.classes):
        members = order[labels == label]
        drawn = np.sort(permutation(len(members), "contact sheet", label)[:per_class])
        images = [read_image(folder, manifest, index[row]) for row in members[drawn]]
        strips.append(Strip(f"{name} ({len(members)})", images))
    title = f"{manifest.dataset} {manifest.split}: {manifest.samples} images"
    return sheet(title, strips, per_class)
