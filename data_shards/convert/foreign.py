"""Read one tar of WebDataset samples that another program wrote, without changing it.

Its members are grouped into samples by webdataset's rule: a name is the key up to the first dot
behind the last slash, then the extension. Members of a sample need not follow each other.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.classes import ClassMap
from data_shards.convert.workers import mark
from data_shards.findings import Finding, Verdict
from data_shards.format.manifest import NO_BIAS, Shard
from data_shards.format.tars import BLOCK
from data_shards.format.writer import Row, rows_of
from data_shards.images.examine import MOST_BYTES, examine
from data_shards.system.files import open_regular, parse_json, sha256_of

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_SPECIAL = re.compile(r"__[^/]*__($|/)")  # webdataset skips such members
_IMAGES = ("jpg", "jpeg", "png", "webp")
_CLASS, _FACTS = "cls", "json"
_LONGEST_KEY = 512  # bytes; every row of the index is as wide as the longest key
_MOST_TEXT = 2**20  # bytes of a class or of facts
_STRETCH = 2**20  # bytes that are read at a time
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the samples of the tars are read.

    ``label_field`` and ``attributes`` are fields of a sample's JSON. Without a ``label_field`` the
    label is in the sample's ``.cls``; a sample without ``.cls`` has its folder as the label.
    """

    classes: ClassMap
    label_field: str | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A tar to read; ``crashed`` has the findings on samples that are not tried, by position."""

    path: Path
    reading: Reading
    crashed: Mapping[int, tuple[Verdict, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tar:
    """What a tar holds.

    ``rows`` are rows of the index of the samples that can be used, ``pixels`` the hashes of their
    pixels in hex. ``values`` are lists of their values by attribute, with None for a sample that
    has none.
    """

    shard: Shard
    rows: NDArray[np.void]
    pixels: list[str]
    values: dict[str, list[str | None]]
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Stands for a tar that cannot be used at all; ``why`` names the cure."""

    path: Path
    why: str


class _UnusableError(Exception):
    """The tar cannot be used; the message says why and names the cure."""


class _UnfitSampleError(Exception):
    """The sample cannot be used."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict: Verdict = verdict
        self.reason = reason


@dataclass(slots=True)
class _Sample:
    """Members by extension, as (offset, size).

    ``reason`` says why the sample cannot be used. ``has_dotted_image``: the name of an image has
    more dots than one, so that another extension was read, such as ``001.jpg``.
    """

    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    reason: str = ""
    has_dotted_image: bool = False

    @property
    def images(self) -> list[str]:
        """The extensions of its images."""
        return [extension for extension in self.members if extension in _IMAGES]


def read_tar(job: Job) -> Tar | Unusable:
    """Read a tar and examine its images, in a worker.

    DataShardsError if the file cannot be opened.
    """
    with open_regular(job.path) as file:
        try:
            sha256 = sha256_of(file, lambda: mark(-1))
            size = os.fstat(file.fileno()).st_size
            return _Reader(job, file).read(_samples(file), size, sha256)
        except _UnusableError as error:
            return Unusable(job.path, str(error))
        except OSError as error:
            return Unusable(job.path, f"cannot be read ({error.strerror})")


def _samples(file: BufferedReader) -> dict[str, _Sample]:
    """Return the samples of a tar by key, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for member in _members(file):
        found = _NAME.fullmatch(member.name)
        if member.isdir() or found is None or _SPECIAL.match(member.name):
            continue
        extension = found[2].lower()
        sample = samples.setdefault(found[1], _Sample())
        if extension not in (*_IMAGES, _CLASS, _FACTS):
            # Other fields do not matter, such as a caption.
            sample.has_dotted_image |= extension.rpartition(".")[2] in _IMAGES
        elif member.issparse():
            sample.reason = "sparse"
        elif not member.isreg():
            sample.reason = "not-a-file"
        elif extension in sample.members:
            sample.reason = "duplicate-member"
        sample.members.setdefault(extension, (member.offset_data, member.size))
    return samples


def _members(file: BufferedReader) -> Iterator[tarfile.TarInfo]:
    file.seek(0)
    begin = file.read(8)
    for magic, cure in _COMPRESSED.items():
        if begin.startswith(magic):
            raise _UnusableError(
                f"is compressed, so no image could be read by its place; unpack it ('{cure}')"
            )
    size = os.fstat(file.fileno()).st_size
    cut = "is truncated: fetch it again, or leave it out"
    file.seek(0)
    position = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while True:
                file.seek(position)
                # Not TarFile.next, which keeps all members in memory.
                member = tarfile.TarInfo.fromtarfile(tar)
                mark(-1)
                if member.size < 0 or tar.offset <= position:
                    raise _UnusableError(_damaged(position))
                if member.offset_data + member.size > size:
                    raise _UnusableError(cut)
                position = tar.offset
                yield member
    except tarfile.HeaderError:  # this may be the end
        pass
    except (_UnusableError, OSError, MemoryError):
        raise
    except Exception as error:  # hostile headers raise many kinds
        if position == 0 and size >= BLOCK and isinstance(error, tarfile.ReadError):
            raise _UnusableError("is no tar; leave it out") from None
        raise _UnusableError(cut if position + BLOCK > size else _damaged(position)) from None
    file.seek(position)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise _UnusableError(cut)
    while block:
        if any(block):
            raise _UnusableError(_damaged(position))
        block = file.read(_STRETCH)


def _damaged(position: int) -> str:
    return (
        f"is damaged, or is several tars in one: behind byte {position:,} is no header that can be "
        "read; fetch it again, or write its samples into a tar of their own"
    )


class _Reader:
    """Turns samples into rows of the index and findings."""

    def __init__(self, job: Job, file: BufferedReader) -> None:
        self._job = job
        self._file = file
        self._rows: list[Row] = []
        self._pixels: list[str] = []
        self._values: dict[str, list[str | None]] = {name: [] for name in job.reading.attributes}
        self._findings: list[Finding] = []

    def read(self, samples: dict[str, _Sample], size: int, sha256: str) -> Tar:
        """Return what the tar holds, which has ``size`` bytes."""
        for position, (key, sample) in enumerate(samples.items()):
            mark(position)
            try:
                if position in self._job.crashed:
                    raise _UnfitSampleError(*self._job.crashed[position])
                self._take(key, sample)
            except _UnfitSampleError as error:
                self._say(self._path(key, sample), error.verdict, (error.reason,))
        shard = Shard(name=self._job.path.name, bytes=size, sha256=sha256, count=len(self._rows))
        return Tar(shard, rows_of(0, self._rows), self._pixels, self._values, self._findings)

    def _say(self, path: str, verdict: Verdict, reasons: tuple[str, ...]) -> None:
        self._findings.append(Finding(path, verdict, reasons))

    def _path(self, key: str, sample: _Sample) -> str:
        named = f"{key}.{sample.images[0]}" if sample.images else key
        return f"{self._job.path.name}/{named}".encode(errors="replace").decode()

    def _take(self, key: str, sample: _Sample) -> None:
        images = sample.images
        reason = sample.reason
        if not images:
            reason = "dot-in-name" if sample.has_dotted_image else "no-image"
        elif len(images) > 1:
            reason = "several-images"
        if not key.isprintable() or len(key.encode()) > _LONGEST_KEY:
            reason = "key"
        if reason:
            raise _UnfitSampleError("refused", reason)
        offset, length = sample.members[images[0]]
        if length > MOST_BYTES:
            raise _UnfitSampleError("refused", "too-large")
        facts = self._facts(sample)
        label = self._label(key, sample, facts)
        values = {name: _text(facts.get(name)) for name in self._values}
        path = self._path(key, sample)
        found = examine(self._content((offset, length)), path, allow_webp=True)
        if found.verdict != "ok":
            self._say(path, found.verdict, found.reasons)
        if found.verdict in ("corrupt", "refused"):
            return
        sha256 = bytes.fromhex(found.sha256)
        self._rows.append(Row(key, offset, length, label, NO_BIAS, sha256))
        self._pixels.append(found.pixels)
        for name, value in values.items():
            self._values[name].append(value)

    def _content(self, member: tuple[int, int]) -> bytes:
        offset, length = member
        return os.pread(self._file.fileno(), length, offset)

    def _facts(self, sample: _Sample) -> dict[str, Any]:
        reading = self._job.reading
        member = sample.members.get(_FACTS)
        if member is None or not (reading.label_field or reading.attributes):
            return {}
        try:
            facts = parse_json(self._content(member)) if member[1] <= _MOST_TEXT else None
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise _UnfitSampleError("corrupt", "malformed-json")
        return facts

    def _label(self, key: str, sample: _Sample, facts: dict[str, Any]) -> int:
        field_name = self._job.reading.label_field
        if field_name is not None:
            value = _text(facts.get(field_name))
        elif _CLASS in sample.members:
            member = sample.members[_CLASS]
            small = member[1] <= _MOST_TEXT
            value = self._content(member).decode(errors="replace").strip() if small else None
        else:
            value = PurePosixPath(key).parent.name or None
        if value is None:
            raise _UnfitSampleError("refused", "no-label")
        classes = self._job.reading.classes
        label = classes.labels.get(value)
        if label is None and value in classes.classes:
            label = classes.classes.index(value)
        if label is None and value.isascii() and value.isdigit() and len(value) < 8:
            label = int(value)
        if label is None or label >= len(classes.classes):
            raise _UnfitSampleError("refused", "unknown-class")
        return label


def _text(value: object) -> str | None:
    """Return a value of JSON as the name of a class or of an attribute's value."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float) and str(value).isprintable():
        return str(value)
    raise _UnfitSampleError("refused", "no-plain-value")
