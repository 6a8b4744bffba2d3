"""Shards as tar files: written byte by byte as webdataset's TarWriter does, and read back.

TarWriter itself would load torch into every worker, and takes longer to make a header than an
image takes to be hashed.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from data_shards.errors import DataShardsError

BLOCK = 512  # a member is a header block and its payload, padded to whole blocks
RECORD = 10240  # a tar ends with two blocks of zeros at least, padded to whole records
LONGEST_NAME = 100  # bytes
_ZEROS = bytes(BLOCK)
_STRETCH = 8 * 2**20  # bytes that are written and read back together


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mtime = 0
    info.mode = 0o444
    info.uname = info.gname = "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


# Where a header has the size and the checksum, each with its end; all else but the name at its
# beginning is the same for all members.
_SIZE, _CHECKSUM = (124, 136), (148, 156)
_TEMPLATE = _template()
_BEFORE, _BETWEEN = _TEMPLATE[LONGEST_NAME : _SIZE[0]], _TEMPLATE[_SIZE[1] : _CHECKSUM[0]]
_AFTER = _TEMPLATE[_CHECKSUM[1] :]
# The checksum is the sum of all bytes, with blanks in its own place.
_SUM = sum(_BEFORE) + sum(_BETWEEN) + sum(_AFTER) + 8 * ord(" ")


def header(name: str, size: int) -> bytes:
    """Return the header block of a member, as webdataset's TarWriter writes it with mtime 0.

    ``name`` has at most 100 bytes, ``size`` is below 8 GiB.
    """
    name_field = name.encode().ljust(LONGEST_NAME, b"\0")
    size_field = b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM + sum(name_field) + sum(size_field))
    block = b"".join((name_field, _BEFORE, size_field, _BETWEEN, checksum, _AFTER))
    if len(block) != BLOCK:
        raise ValueError(f"{name}: its name or its size of {size} bytes is too long for a tar")
    return block


def padding(size: int, unit: int = BLOCK) -> int:
    """Return the number of zeros behind ``size`` bytes."""
    return -size % unit


class Member(NamedTuple):
    """A member of a tar: ``offset`` is where its payload begins."""

    name: bytes
    offset: int
    size: int


@dataclass(slots=True)
class _Stretch:
    """A part of the tar that ends with a sample or with the tar, and its members."""

    begin: int
    length: int = 0
    parts: list[bytes] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    def append(self, part: bytes) -> None:
        self.parts.append(part)
        self.length += len(part)


class TarStream:
    """Writes a tar to an empty file that is open for reading and writing, and reads it back.

    Each stretch is synced, read from the disk and compared with what was written, in a thread,
    while the next one gathers: the disk works while images are examined, and no more than two
    stretches are in memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stretch = _Stretch(0)
        self._whole = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def add(self, key: str, contents: Mapping[str, bytes]) -> dict[str, int]:
        """Append a sample: its payloads by extension; return where each begins."""
        offsets = {}
        stretch = self._stretch
        for extension, payload in sorted(contents.items()):
            name, size = f"{key}.{extension}", len(payload)
            stretch.append(header(name, size))
            offsets[extension] = stretch.begin + stretch.length
            stretch.members.append(Member(name.encode(), offsets[extension], size))
            stretch.append(payload)
            stretch.append(_ZEROS[: padding(size)])
        if stretch.length >= _STRETCH:
            self._flush()
        return offsets

    def finish(self, alive: Callable[[], object] = lambda: None) -> tuple[int, str]:
        """End the tar; return its bytes and its sha256 as read back.

        DataShardsError if what comes back is not what was written. ``alive()`` is called
        when a wait ends.
        """
        stretch = self._stretch
        stretch.append(bytes(2 * BLOCK))
        stretch.append(bytes(padding(stretch.begin + stretch.length, RECORD)))
        self._flush()
        alive()
        self._wait()
        alive()
        os.fsync(self._file.fileno())
        return self._stretch.begin, self._whole.hexdigest()

    def close(self) -> None:
        """End the thread, whatever became of its work."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _flush(self) -> None:
        self._wait()
        stretch = self._stretch
        self._pending = self._thread.submit(self._store, stretch)
        self._stretch = _Stretch(stretch.begin + stretch.length)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _store(self, stretch: _Stretch) -> None:
        content = b"".join(stretch.parts)
        self._file.write(content)
        self._file.flush()
        descriptor = self._file.fileno()
        os.fdatasync(descriptor)
        # What is synced may leave the memory, so that it is the disk that answers.
        os.posix_fadvise(descriptor, stretch.begin, len(content), os.POSIX_FADV_DONTNEED)
        found = os.pread(descriptor, len(content), stretch.begin)
        if found != content:
            raise DataShardsError(
                f"{self._file.name}: read back from the disk it is not what was written; the disk "
                "or the memory of this machine is at fault"
            )
        members = list(read_members(found, stretch.begin))
        if members != stretch.members:
            raise AssertionError(f"{self._file.name}: its members are not where they should be")
        self._whole.update(found)


def read_members(content: bytes, begin: int) -> Iterator[Member]:
    """Yield the members of a stretch of a tar that begins at ``begin`` with a header.

    It reads headers by the POSIX standard and knows nothing of what the writer does. Ends at
    the first without a name; ValueError for a header that is damaged or is no regular file's.
    """
    position = 0
    while position < len(content):
        block = content[position : position + BLOCK]
        if block[0] == 0:  # no name: the end
            return
        checksum = int(block[148:156].strip(b"\0 "), 8)
        if sum(block) - sum(block[148:156]) + 8 * 32 != checksum:
            raise ValueError(f"damaged header at {begin + position}")
        if block[156:157] not in b"0\0" or block[257:262] != b"ustar":
            raise ValueError(f"no regular file at {begin + position}")
        name = block[:100].rstrip(b"\0")
        size = int(block[124:136].strip(b"\0 "), 8)
        position += BLOCK
        yield Member(name, begin + position, size)
        position += size + padding(size)
