"""Publish finished shards as a split: write findings, index and manifest, rename the folder.

A converted split has two more files. ``findings.jsonl`` has a line for each image that was left
out, is odd, or repeats another image of the split, under its path in the source. ``pixels.npy`` has
the first 16 bytes of the hash of each sample's pixels, in the order of the index; it finds images
that occur in several splits.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.convert.journal import Head, Note, Record, Work
from data_shards.convert.workers import Crash, map_surviving
from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import Finding, count_images
from data_shards.format.attributes import attributes_dtype, describe
from data_shards.format.manifest import (
    ATTRIBUTES_NAME,
    HASH_BYTES,
    NO_BIAS,
    Attribute,
    Excluded,
    Manifest,
    load_manifest,
)
from data_shards.format.writer import Row, differs, index_of, npy, present, rows_of, write_records
from data_shards.images.duplicates import DuplicateFinder
from data_shards.images.examine import full_pixels
from data_shards.sources.listing import Item, read_item
from data_shards.system.file_system import sync_folder
from data_shards.system.files import move_folder

FINDINGS_NAME = "findings.jsonl"
PIXELS_NAME = "pixels.npy"
_CHUNK = 8  # images that a worker compares at a time
_SHOWN = 10


@dataclass
class Tally:
    """How many of ``images`` were left out because they are damaged or were refused."""

    images: int
    damaged: float = 0  # infinite if a folder or an archive was not read
    first: Finding | None = None

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Tally":
        """Return the tally of a split of which every file was left out."""
        count = count_images(finding.images for finding in findings)
        return cls(sum(finding.images for finding in findings), count, findings[0])

    def add(self, notes: Iterable[Note]) -> None:
        """Count the notes on damaged or refused images."""
        for note in notes:
            if note.damage:
                self.damaged += count_images([note.images])
                self.first = self.first or note.finding


@dataclass(frozen=True)
class Limit:
    """How many images may be left out as damaged or refused before nothing is published.

    ``most`` is a number (int) or a fraction of the listed images (float, 0..1), None without
    a limit. ``option`` is the option that set it, for the message.
    """

    most: int | float | None = None
    option: str = ""

    def check(self, tally: Tally) -> None:
        """Raise DataShardsError if the limit is passed."""
        if self.most is None or self.holds(tally.damaged, tally.images):
            return
        first = tally.first
        assert first is not None
        known = math.isfinite(tally.damaged)
        count = f"{tally.damaged:.0f} of {tally.images}" if known else "an unknown number of"
        raise DataShardsError(
            f"{first.path}: {first.verdict} ({', '.join(first.reasons)}); with it "
            f"{count} images are left out, more than {self.option} "
            "allows; nothing is published, and the work so far is kept"
        )

    def holds(self, damaged: float, images: int) -> bool:
        """Return whether the count is within the limit; without a limit, only 0 is."""
        most = self.most or 0
        return damaged <= (most * images if isinstance(most, float) else most)


def merge(output: Path, split: str, *, limit: Limit, workers: int) -> Manifest:
    """Publish a split whose parts were converted, as one conversion would have.

    DataShardsError if shards are missing, or too many images are damaged; UsageError if there
    is nothing to merge.
    """
    work = Work(output, split)
    try:
        head = work.head()
    except UsageError:
        if (output / split).is_dir():
            return load_manifest(output / split)
        raise
    there = present(output, head.plan)
    if there is not None:
        work.remove()
        return there
    return publish(work, head, output, limit=limit, workers=workers)


def publish(work: Work, head: Head, output: Path, *, limit: Limit, workers: int) -> Manifest:
    """Write the records of a split whose shards are all there, and give it its name."""
    plan = head.plan
    final = output / plan.split
    with work.locked():
        if final.is_dir() or not work.shards.is_dir():
            published = present(output, plan)
            if published is None:
                raise differs(final)
            work.remove()
            return published
        records = _Records(work, head)
        records.check_complete()
        tally = Tally(head.listed)
        tally.add(head.notes)
        notes = list(head.notes)
        finder = DuplicateFinder()
        tables, shards, pixels, attributes = [], [], [], []
        for record in records:
            tally.add(record.notes)
            notes += record.notes
            shards.append(record.shard)
            tables.append(rows_of(record.number, _rows(record)))
            attributes += [sample.attributes for sample in record.samples]
            for sample in record.samples:
                finder.add(sample.original, sample.pixels)
                pixels.append(first_half(sample.pixels))
        limit.check(tally)
        if not pixels:
            raise DataShardsError(
                f"{head.dataset} {head.split}: all {head.images} images are damaged or refused"
            )
        findings = [note.finding for note in notes]
        findings += _duplicates(finder, records, workers)
        excluded = [
            Excluded(source=note.path, reasons=note.reasons, images=note.images)
            for note in notes
            if note.left_out
        ]
        shard_names = {shard.name for shard in shards}
        for path in work.shards.iterdir():  # left by a process that was killed while it published
            if path.name not in shard_names:
                path.unlink()
        index = index_of(tables)
        files = found_files(findings, pixels)
        described: list[Attribute] = []
        if head.attributes:
            ids = np.array(attributes, dtype=attributes_dtype(list(head.attributes)))
            files[ATTRIBUTES_NAME] = npy(ids)
            described = describe(head.attributes, ids, index["label"], len(plan.classes))
        write_records(
            work.shards,
            plan,
            shards,
            index,
            excluded=excluded,
            files=files,
            attributes=described,
        )
        sync_folder(work.shards)
        move_folder(work.shards, final)
    work.remove()
    return load_manifest(final)


def found_files(findings: Iterable[Finding], pixels: Iterable[bytes]) -> dict[str, bytes]:
    """Return ``findings.jsonl`` and ``pixels.npy``; ``pixels`` are values of :func:`first_half`."""
    return {
        FINDINGS_NAME: "".join(finding.to_json() + "\n" for finding in findings).encode(),
        PIXELS_NAME: npy(np.frombuffer(b"".join(pixels), dtype=f"V{HASH_BYTES}")),
    }


def first_half(pixels: str) -> bytes:
    """Return the first half of a hash in hex, as ``pixels.npy`` has it; zeros for no hash."""
    return bytes.fromhex(pixels)[:HASH_BYTES].ljust(HASH_BYTES, b"\0")


def _rows(record: Record) -> list[Row]:
    return [
        Row(
            sample.key,
            sample.offset,
            sample.length,
            sample.label,
            sample.attributes[0] if sample.attributes else NO_BIAS,
            bytes.fromhex(sample.sha256),
        )
        for sample in record.samples
    ]


class _Records:
    """Reads the records of all shards one at a time, because together they are large."""

    def __init__(self, work: Work, head: Head) -> None:
        self._work = work
        self._head = head
        self._starts: list[int] = []

    def check_complete(self) -> None:
        """Raise DataShardsError that names the missing shards."""
        numbers = range(self._head.shards)
        missing = [n for n in numbers if not self._work.has(n)]
        if missing:
            some = ", ".join(map(str, missing[:_SHOWN]))
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise DataShardsError(
                f"{self._work.folder}: {len(missing)} of {len(numbers)} shards are not written "
                f"yet: {some}{more}; run the parts that write them (shard s belongs to part "
                "s mod n + 1 of n)"
            )

    def __iter__(self) -> Iterator[Record]:
        count = 0
        for number in range(self._head.shards):
            record = self._read(number)
            self._starts.append(count)
            count += len(record.samples)
            yield record

    def _read(self, number: int) -> Record:
        record = self._work.record(number, self._head.plan.recipe)
        if record is None:
            raise DataShardsError(
                f"{self._work.folder}: shard {number} is damaged; repeat the command that wrote it"
            )
        return record

    def stored(self, rows: Iterable[int]) -> dict[int, Item]:
        """Return the images of rows of the index, as stored; loads each record once."""
        found = {}
        number, record = -1, None
        for row in sorted(set(rows)):
            place = int(np.searchsorted(self._starts, row, side="right")) - 1
            if record is None or place != number:
                number, record = place, self._read(place)
            sample = record.samples[row - self._starts[number]]
            path = str(self._work.shards / record.shard.name)
            found[row] = Item(
                sample.source, sample.key, sample.label, "", path, sample.offset, sample.length
            )
        return found


def _duplicates(finder: DuplicateFinder, records: _Records, workers: int) -> list[Finding]:
    found: list[tuple[int, int, str]] = []
    for first, *others in finder.same_bytes():
        found += [(other, first, "same-bytes") for other in others]
    groups = finder.same_pixels()
    candidates = records.stored(row for group in groups for row in group)
    for first, *others in confirmed(groups, candidates.__getitem__, workers):
        found += [(other, first, "same-pixels") for other in others]
    images = records.stored(row for other, first, _ in found for row in (other, first))
    return [
        Finding(images[row].source, "duplicate", (reason,), of=images[first].source)
        for row, first, reason in sorted(found)
    ]


def confirmed(
    groups: Sequence[Sequence[int]], item: Callable[[int], Item], workers: int
) -> list[list[int]]:
    """Return the groups of rows whose pixels are equal at full size.

    The pixels of ``groups`` are equal at an eighth of it; ``item(row)`` is where an image lies.
    """
    members = [row for group in groups for row in group]
    if not members:
        return []
    hashes = map_surviving(
        full_pixels_of, map(item, members), workers=min(workers, len(members)), chunk=_CHUNK
    )
    pixels = dict(zip(members, hashes, strict=True))
    return groups_of_equal(groups, pixels)


def groups_of_equal(
    groups: Sequence[Sequence[int]], hashes: Mapping[int, str | Crash]
) -> list[list[int]]:
    """Split groups of rows into those with equal hashes; a row without a hash is in none."""
    result = []
    for group in groups:
        same: dict[str, list[int]] = {}
        for row in group:
            value = hashes[row]
            if not isinstance(value, Crash) and value:
                same.setdefault(value, []).append(row)
        result += [rows for rows in same.values() if len(rows) > 1]
    return result


def full_pixels_of(item: Item) -> str:
    """Return the hash of all the pixels of an image, in a worker."""
    return full_pixels(read_item(item))
