"""Find images that occur in several splits of a folder, such as a test image in the training set.

They are kept, because published counts include them. ``DIR/duplicates.jsonl`` lists them, not the
findings of a split, because they depend on which other splits exist.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.convert.publish import PIXELS_NAME, confirmed
from data_shards.findings import Finding
from data_shards.format.manifest import HASH_BYTES, MANIFEST_NAME, Manifest, load_split, map_array
from data_shards.images.duplicates import DuplicateFinder
from data_shards.litter import children
from data_shards.sources.listing import Item
from data_shards.system.files import read_regular, write_synced

DUPLICATES_NAME = "duplicates.jsonl"


@dataclass(frozen=True, eq=False)
class _Split:
    folder: Path
    manifest: Manifest
    index: NDArray[np.void]
    first: int  # row of its first sample among all splits

    def name(self, row: int) -> str:
        key = self.index["key"][row - self.first].decode(errors="replace")
        return f"{self.manifest.split}/{key}"

    def item(self, row: int) -> Item:
        place = self.index[row - self.first]
        path = self.folder / self.manifest.shards[place["shard"]].name
        return Item(
            source=self.name(row),
            key="",
            label=0,
            wnid="",
            path=str(path),
            offset=int(place["offset"]),
            length=int(place["length"]),
        )


def write_overlaps(output: Path, workers: int) -> list[Finding]:
    """Compare all converted splits below ``output``; write and return what occurs in several.

    Paths are ``<split>/<key>``. Among equal images, the one in the first split by name counts as
    the original.
    """
    path = output / DUPLICATES_NAME
    while True:
        folders = _folders(output)
        splits = _splits(folders)
        findings = _compare(splits, workers) if len(splits) > 1 else []
        if len(splits) > 1:
            content = "".join(finding.to_json() + "\n" for finding in findings).encode()
            # Finished shards are often read-only.
            if not path.is_file() or read_regular(path) != content:
                write_synced(path, content)
        elif path.exists():
            path.unlink()
        # If another process has published a split meanwhile, this list lacks its images.
        if _folders(output) == folders:
            return findings


def _compare(splits: Sequence[_Split], workers: int) -> list[Finding]:
    finder = DuplicateFinder()
    for split in splits:
        pixels = map_array(split.folder / PIXELS_NAME)
        for sha256, hashed in zip(split.index["hash"], pixels, strict=True):
            shown = hashed.tobytes().hex() if hashed.tobytes() != bytes(HASH_BYTES) else ""
            finder.add(sha256.tobytes().hex(), shown)
    starts = [split.first for split in splits]

    def split_of(row: int) -> _Split:
        return splits[int(np.searchsorted(starts, row, side="right")) - 1]

    def across(groups: Sequence[Sequence[int]]) -> list[list[int]]:
        return [list(group) for group in groups if split_of(group[0]) is not split_of(group[-1])]

    found: list[tuple[int, Finding]] = []

    def report(groups: Sequence[Sequence[int]], reason: str) -> None:
        for group in groups:
            first = split_of(group[0])
            for row in group[1:]:
                split = split_of(row)
                if split is not first:
                    of = first.name(group[0])
                    finding = Finding(split.name(row), "duplicate", (reason,), of=of)
                    found.append((row, finding))

    report(across(finder.same_bytes()), "same-bytes")
    candidates = across(finder.same_pixels())
    report(confirmed(candidates, lambda row: split_of(row).item(row), workers), "same-pixels")
    return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]


def _folders(output: Path) -> list[Path]:
    return [path.parent for path in children(output, f"*/{MANIFEST_NAME}")]


def _splits(folders: Iterable[Path]) -> list[_Split]:
    splits = []
    first = 0
    for folder in folders:
        manifest, index = load_split(folder)
        if PIXELS_NAME in manifest.files:
            splits.append(_Split(folder, manifest, index, first))
            first += len(index)
    return splits
