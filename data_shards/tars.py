"""Shards as tar files: written byte by byte as webdataset's TarWriter does, and read back.

The headers come from tarfile. TarWriter itself would load torch into every worker.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import BinaryIO

from data_shards.errors import DataShardsError

BLOCK = 512  # a member is a header block and its payload, padded to whole blocks
RECORD = 10240  # a tar ends with two blocks of zeros at least, padded to whole records
_STRETCH = 2**20  # bytes that are read at a time


def header(name: str, size: int) -> bytes:
    """Return the header block of a member, as webdataset's TarWriter writes it with mtime 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = 0
    info.mode = 0o444
    info.uname = info.gname = "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int, unit: int = BLOCK) -> int:
    """Return the number of zeros behind ``size`` bytes."""
    return -size % unit


@dataclass(frozen=True, slots=True)
class Member:
    """A member as it should be: ``offset`` is where its payload begins."""

    name: str
    offset: int
    size: int
    sha256: bytes


class TarStream:
    """Writes a tar to a file that is open for reading and writing.

    ``members`` are what was written so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self.members: list[Member] = []

    def add(self, key: str, contents: Mapping[str, tuple[bytes, bytes]]) -> dict[str, int]:
        """Append a sample; return where the payload of each of its members begins.

        ``contents`` maps extensions to payloads, each with its sha256.
        """
        offsets = {}
        for extension, (payload, sha256) in sorted(contents.items()):
            name = f"{key}.{extension}"
            self._write(header(name, len(payload)))
            offsets[extension] = self._end
            self.members.append(Member(name, self._end, len(payload), sha256))
            self._write(payload)
            self._write(bytes(padding(len(payload))))
        return offsets

    def finish(self, alive: Callable[[], object] = lambda: None) -> tuple[int, str]:
        """End the tar, flush it to the disk, read it back; return its bytes and sha256.

        DataShardsError if what comes back is not what was written. ``alive()`` is called
        now and then.
        """
        self._write(bytes(2 * BLOCK))
        self._write(bytes(padding(self._end, RECORD)))
        self._file.flush()
        os.fsync(self._file.fileno())
        # What is synced may leave the memory, so that it is the disk that answers.
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._end, read_back(self._file, self.members, alive)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._end += len(content)


def read_back(
    file: BinaryIO, members: Sequence[Member], alive: Callable[[], object] = lambda: None
) -> str:
    """Return the sha256 of a tar after comparing each of its members, found by tarfile."""
    whole = hashlib.sha256()
    hashed = 0

    def hash_up_to(end: int | None) -> None:
        """Hash in the order of the file, just before or after its parts are looked at."""
        nonlocal hashed
        file.seek(hashed)
        while end is None or hashed < end:
            stretch = file.read(_STRETCH if end is None else min(_STRETCH, end - hashed))
            if not stretch:
                return
            whole.update(stretch)
            hashed += len(stretch)

    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for number, (found, member) in enumerate(zip_longest(tar, members)):
                if number % 256 == 0:
                    alive()
                if found is None or member is None or not found.isreg():
                    raise _different(member.name if member else found.name)
                place = (found.name, found.offset_data, found.size)
                if place != (member.name, member.offset, member.size):
                    raise _different(member.name)
                hash_up_to(member.offset)
                payload = file.read(member.size)
                whole.update(payload)
                hashed += len(payload)
                if hashlib.sha256(payload).digest() != member.sha256:
                    raise _different(member.name)
    except tarfile.TarError:
        raise _different("the headers") from None
    hash_up_to(None)
    return whole.hexdigest()


def _different(what: str) -> DataShardsError:
    return DataShardsError(
        f"{what}: read back from the disk it is not what was written; the disk or the memory of "
        "this machine is at fault"
    )
