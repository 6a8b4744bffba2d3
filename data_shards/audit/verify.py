"""Find everything that changed in a split since it was written, and name the part.

Shards are read block by block. Every header must be the one that the writer makes, every byte
between the payloads zero, and every payload must have its hash. A length that a file claims is
compared with the size of the file before memory is allocated for it.

Tars that another program wrote must have their hash, and so must every image in them.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.convert.workers import Crash, map_surviving, mark
from data_shards.errors import DataShardsError
from data_shards.findings import Finding, Verdict
from data_shards.format.attributes import load_attributes, named_values
from data_shards.format.manifest import (
    ATTRIBUTES_NAME,
    HASH_BYTES,
    INDEX_NAME,
    MANIFEST_NAME,
    NO_BIAS,
    Manifest,
    load_index,
    parse_manifest,
)
from data_shards.format.tars import BLOCK, RECORD, padding, read_header
from data_shards.images.clusters import CLUSTERS_NAME, read_clusters
from data_shards.system.files import open_regular, parse_json, sha256_of

_STRETCH = 2**20  # bytes that are read at a time
_LARGEST_TEXT = 2**20  # bytes of a sample's class or facts
_IMAGE, _CLASS, _FACTS = ("jpg", "png"), "cls", "json"
_SHARD = re.compile(r"[^.].*\.tar", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verified:
    """The number of samples and bytes that were verified, and the manifest's digest."""

    samples: int
    bytes: int
    digest: str


def verify_split(
    folder: Path,
    *,
    workers: int = 1,
    told: list[Verified] | None = None,
    on_shard: Callable[[int], object] = lambda samples: None,
) -> Iterator[Finding]:
    """Yield a finding for each thing in the split ``folder`` that is not as it was written.

    With more than one worker the shards are read in processes. A :class:`Verified` is appended to
    ``told``; ``on_shard(samples)`` is called after each shard. The paths of the findings begin
    with ``folder``; those of members continue with the shard and the member's name.

    An attacker who recomputes all hashes, the manifest's too, is not detected. To notice it,
    compare the digest with one from elsewhere.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest, as_written = parse_manifest(path)
    except DataShardsError as error:
        yield _broken(path, error)
        return
    if not as_written:
        yield _finding(path, "altered")
    if told is not None:
        size = sum(shard.bytes for shard in manifest.shards)
        told.append(Verified(manifest.samples, size, manifest.digest))
    index: NDArray[np.void] | None = None
    attributes: NDArray[np.void] | None = None
    name = INDEX_NAME
    unusable = ""
    try:
        index = load_index(folder, manifest)
        yield from _repeated_keys(folder / INDEX_NAME, index)
        yield from _clusters(folder, index)
        name = ATTRIBUTES_NAME
        attributes = load_attributes(folder, manifest, index)
    except DataShardsError as error:
        unusable = name
        yield _broken(folder / name, error)
    sealed = {INDEX_NAME: manifest.index_sha256, **manifest.files}
    for name, sha256 in sealed.items():
        try:
            with open_regular(folder / name) as file:
                if sha256_of(file) != sha256:
                    yield _finding(folder / name, "altered")
        except DataShardsError as error:
            if name != unusable:
                yield _broken(folder / name, error)
    yield from _foreign_shards(folder, manifest)
    results = _each(_jobs(folder, manifest, index, attributes), workers, len(manifest.shards))
    for shard, found in zip(manifest.shards, results, strict=True):
        yield from found
        on_shard(shard.count)


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard as the manifest and the index (None if it is malformed) describe it.

    ``attributes`` are the values of each sample's attributes by name, None if there are none or
    their file is malformed.
    """

    path: Path
    bytes: int
    sha256: str
    rows: NDArray[np.void] | None
    attributes: list[dict[str, str]] | None
    is_foreign: bool


def _jobs(
    folder: Path,
    manifest: Manifest,
    index: NDArray[np.void] | None,
    attributes: NDArray[np.void] | None,
) -> Iterator[_Job]:
    values = {attribute.name: attribute.values for attribute in manifest.attributes}
    first = 0
    for shard in manifest.shards:
        place = slice(first, first + shard.count)
        first += shard.count
        yield _Job(
            folder / shard.name,
            shard.bytes,
            shard.sha256,
            None if index is None else index[place].copy(),
            None
            if attributes is None
            else [named_values(values, ids) for ids in attributes[place].tolist()],
            manifest.is_indexed,
        )


def _each(jobs: Iterable[_Job], workers: int, count: int) -> Iterator[list[Finding]]:
    if workers == 1 or count < 2:
        yield from map(verify_shard, jobs)
        return
    for found in map_surviving(verify_shard, jobs, workers=min(workers, count)):
        if isinstance(found, Crash):
            raise DataShardsError(f"a process that verifies shards ended ({found.cause})")
        yield found


def _foreign_shards(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    known = {shard.name for shard in manifest.shards}
    for name in sorted(os.listdir(folder)):
        if _SHARD.fullmatch(name) and name not in known:
            yield _finding(folder / name, "foreign-shard")


def _clusters(folder: Path, index: NDArray[np.void]) -> Iterator[Finding]:
    if os.path.lexists(folder / CLUSTERS_NAME):
        try:
            read_clusters(folder, index)
        except DataShardsError as error:
            yield _broken(folder / CLUSTERS_NAME, error)


def _repeated_keys(path: Path, index: NDArray[np.void]) -> Iterator[Finding]:
    keys = np.sort(index["key"])
    for key in np.unique(keys[1:][keys[1:] == keys[:-1]]):
        yield _finding(f"{path}/{key.decode(errors='replace')}", "duplicate-sample")


def verify_shard(job: _Job) -> list[Finding]:
    """Return what is wrong with one shard, whole and by its members."""
    try:
        file = open_regular(job.path)
    except DataShardsError as error:
        return [_broken(job.path, error)]
    with file:
        try:
            size = os.fstat(file.fileno()).st_size
            found = []
            if size < job.bytes:
                found.append(_finding(job.path, "truncated"))
            elif size > job.bytes:
                found.append(_finding(job.path, "longer"))
            altered = sha256_of(file, lambda: mark(0)) != job.sha256
            if altered:
                found.append(_finding(job.path, "altered"))
            if job.rows is not None and job.is_foreign:
                found += _altered_images(file, job.path, job.rows)
            elif job.rows is not None:
                found += _Walk(file, size, job).run()
            return found
        except OSError as error:
            raise DataShardsError(f"{job.path}: cannot be read ({error.strerror})") from None


def _altered_images(file: BufferedReader, path: Path, rows: NDArray[np.void]) -> Iterator[Finding]:
    for row in rows:
        if _image_hash(file, int(row["offset"]), int(row["length"])) != row["hash"].tobytes():
            yield _finding(f"{path}/{row['key'].decode(errors='replace')}", "altered")


def _image_hash(file: BufferedReader, offset: int, length: int) -> bytes:
    digest = hashlib.sha256()
    for begin in range(offset, offset + length, _STRETCH):
        digest.update(os.pread(file.fileno(), min(_STRETCH, offset + length - begin), begin))
        mark(0)
    return digest.digest()[:HASH_BYTES]


class _Walk:
    """Walks through a tar and compares its samples with the index."""

    def __init__(self, file: BufferedReader, size: int, job: _Job) -> None:
        """Walk through ``file``, which has ``size`` bytes; the rows of ``job`` are known."""
        assert job.rows is not None
        self._file = file
        self._size = size
        self._path = job.path
        keys = [key.decode(errors="replace") for key in job.rows["key"]]
        self._rows = dict(zip(keys, job.rows, strict=True))
        known = job.attributes
        self._attributes = None if known is None else dict(zip(keys, known, strict=True))
        self._seen: dict[str, set[str]] = {key: set() for key in self._rows}
        self._hashes: dict[str, str] = {}
        self._facts: dict[str, Any] = {}
        self._found: list[Finding] = []

    def run(self) -> list[Finding]:
        """Return the findings of the members, in the order of the shard, then what is missing."""
        end = 0
        while self._size - end >= BLOCK:
            block = self._read(end, BLOCK)
            if not any(block):
                self._check_end(end)
                break
            try:
                name, size, as_written = read_header(block)
            except tarfile.HeaderError:
                self._say("damaged-header", self._near(end))
                break
            end += BLOCK
            name = name.encode(errors="replace").decode()
            if size < 0 or size > self._size - end:
                self._say("damaged-header", name)
                break
            self._check_member(name, end, size, as_written=as_written)
            end += size + padding(size)
        else:
            self._say("no-end")
        self._check_samples()
        return self._found

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _say(self, reason: str, member: str = "", verdict: Verdict = "corrupt") -> None:
        path = f"{self._path}/{member}" if member else str(self._path)
        self._found.append(Finding(path, verdict, (reason,)))

    def _near(self, position: int) -> str:
        """Return the key of the sample whose header or image is at ``position``."""
        later = [row for row in self._rows.values() if row["offset"] + row["length"] > position]
        return str(later[0]["key"].decode(errors="replace")) if later else ""

    def _check_end(self, end: int) -> None:
        whole = end + 2 * BLOCK
        if self._size != whole + padding(whole, RECORD):
            self._say("wrong-end")
        for offset in range(end, self._size, _STRETCH):
            if any(self._read(offset, _STRETCH)):
                self._say("bytes-behind-the-end")
                return

    def _check_member(self, name: str, offset: int, size: int, *, as_written: bool) -> None:
        key, _, extension = name.partition(".")
        row = self._rows.get(key)
        if row is None or extension not in (*_IMAGE, _CLASS, _FACTS):
            self._say("foreign-member", name)
            return
        kind = "image" if extension in _IMAGE else extension
        if kind in self._seen[key]:
            self._say("duplicate-member", name)
            return
        self._seen[key].add(kind)
        if not as_written:
            self._say("damaged-header", name)
        if any(self._read(offset + size, padding(size))):
            self._say("damaged-padding", name)
        if kind == "image":
            self._check_image(name, row, offset, size)
        elif size > _LARGEST_TEXT:
            self._say("altered", name)
        elif kind == _CLASS:
            if self._read(offset, size) != str(row["label"]).encode():
                self._say("wrong-label", name)
        else:
            self._check_facts(name, row, self._read(offset, size))

    def _check_image(self, name: str, row: np.void, offset: int, size: int) -> None:
        key = name.partition(".")[0]
        if (offset, size) != (row["offset"], row["length"]):
            self._say("not-where-the-index-says", name)
        digest = hashlib.sha256()
        for begin in range(offset, offset + size, _STRETCH):
            digest.update(self._read(begin, min(_STRETCH, offset + size - begin)))
            mark(0)
        if digest.digest()[:HASH_BYTES] == row["hash"].tobytes():
            self._hashes[key] = digest.hexdigest()
        else:
            self._say("altered", name)

    def _check_facts(self, name: str, row: np.void, text: bytes) -> None:
        key = name.partition(".")[0]
        try:
            facts = parse_json(text)
            self._facts[key] = facts["sha256"]
            canonical = json.dumps(facts, sort_keys=True).encode()
            bias = facts.get("bias", NO_BIAS)
            attributes = facts.get("attributes")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._say("altered", name)
            return
        if canonical != text:
            self._say("altered", name)
        elif bias != row["bias"]:
            self._say("wrong-bias", name)
        elif self._attributes is not None and attributes != self._attributes[key]:
            self._say("wrong-attributes", name)

    def _check_samples(self) -> None:
        for key, seen in self._seen.items():
            for kind in ("image", _CLASS, _FACTS):
                if kind not in seen:
                    self._say(f"missing-{kind}", key)
            told = self._facts.get(key)
            if told is not None and key in self._hashes and told != self._hashes[key]:
                self._say("facts-of-another-image", key)


def _finding(path: Path | str, reason: str) -> Finding:
    return Finding(str(path), "corrupt", (reason,))


def _broken(path: Path, error: DataShardsError) -> Finding:
    """Return the finding for a file that cannot be used at all."""
    if not os.path.lexists(path):
        return _finding(path, "missing")
    if not path.is_file():
        return Finding(str(path), "refused", ("not-a-file",))
    return _finding(path, "unreadable" if "cannot be read" in str(error) else "malformed")
