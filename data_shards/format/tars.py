"""Shards as tar files: written byte by byte as webdataset's TarWriter does, and read back.

TarWriter itself would load torch into every worker, and takes longer to make a header than an
image takes to be hashed.
"""

import hashlib
import mmap
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from data_shards.errors import DataShardsError

BLOCK = 512  # a member is a header block and its payload, padded to whole blocks
RECORD = 10240  # a tar ends with two blocks of zeros at least, padded to whole records
LONGEST_NAME = 100  # bytes
_ZEROS = bytes(BLOCK)
_STRETCH = 4 * 2**20  # bytes that are written and synced together
_ROOM = 2**20  # bytes beyond a stretch, for the sample that ends it
_PIECE = 2**18  # bytes that are read back and compared together, while they are in the cache


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
    text = name.encode()
    name_field = text.ljust(LONGEST_NAME, b"\0")
    size_field = b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM + sum(text) + sum(size_field))
    block = b"".join((name_field, _BEFORE, size_field, _BETWEEN, checksum, _AFTER))
    if len(block) != BLOCK:
        raise ValueError(f"{name}: its name or its size of {size} bytes is too long for a tar")
    return block


def padding(size: int, unit: int = BLOCK) -> int:
    """Return the number of zeros behind ``size`` bytes."""
    return -size % unit


class TarStream:
    """Writes a tar to an empty file that is open for reading and writing, and reads it back.

    Each stretch is synced, read from the disk and compared with what was written, in a thread,
    while the next one gathers: the disk works while images are examined. Two buffers take
    turns: memory that is used again costs neither page faults nor what the caches hold.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._gathering, self._storing = _Buffer(), _Buffer()
        self._begin = 0  # of the stretch that gathers
        self._whole = hashlib.sha256()
        self._piece = bytearray(_PIECE)
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def add(self, key: str, contents: Mapping[str, bytes]) -> dict[str, int]:
        """Append a sample: its payloads by extension; return where each begins."""
        offsets = {}
        buffer = self._gathering
        for extension, payload in sorted(contents.items()):
            size = len(payload)
            buffer.append(header(f"{key}.{extension}", size))
            offsets[extension] = self._begin + buffer.length
            buffer.append(payload)
            buffer.append(_ZEROS[: padding(size)])
        if buffer.length >= _STRETCH:
            self._flush()
        return offsets

    def finish(self, alive: Callable[[], object] = lambda: None) -> tuple[int, str]:
        """End the tar; return its bytes and its sha256 as read back.

        DataShardsError if what comes back is not what was written. ``alive()`` is called
        when a wait ends.
        """
        self._gathering.append(bytes(2 * BLOCK))
        self._gathering.append(bytes(padding(self._begin + self._gathering.length, RECORD)))
        self._flush()
        alive()
        self._wait()
        alive()
        os.fsync(self._file.fileno())
        return self._begin, self._whole.hexdigest()

    def close(self) -> None:
        """End the thread, whatever became of its work."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _flush(self) -> None:
        self._wait()
        full = self._gathering
        self._gathering, self._storing = self._storing, full
        self._gathering.clear()
        self._pending = self._thread.submit(self._store, full.content, self._begin)
        self._begin += full.length

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _store(self, content: memoryview, begin: int) -> None:
        self._file.write(content)
        self._file.flush()
        descriptor = self._file.fileno()
        os.fdatasync(descriptor)
        # What is synced may leave the memory, so that it is the disk that answers. Whole pages do:
        # the first has the end of the last stretch too.
        page = begin - begin % mmap.PAGESIZE
        length = begin + len(content) - page
        os.posix_fadvise(descriptor, page, length, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, page, length, os.POSIX_FADV_WILLNEED)
        for first in range(0, len(content), _PIECE):
            written = content[first : first + _PIECE]
            count = os.preadv(descriptor, [self._piece], begin + first)
            if count < len(written) or not self._piece.startswith(written):
                raise DataShardsError(
                    f"{self._file.name}: read back from the disk it is not what was written; "
                    "the disk or the memory of this machine is at fault"
                )
            self._whole.update(written)


class _Buffer:
    """Bytes that gather in memory that is kept: ``content`` is the first ``length`` of it.

    What a large sample needed besides is given back by ``clear``.
    """

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(_STRETCH + _ROOM))
        self.length = 0

    def clear(self) -> None:
        self.length = 0
        if len(self._memory) > _STRETCH + _ROOM:
            self._memory = memoryview(bytearray(_STRETCH + _ROOM))

    @property
    def content(self) -> memoryview:
        return self._memory[: self.length]

    def append(self, part: bytes) -> None:
        end = self.length + len(part)
        if end > len(self._memory):
            larger = memoryview(bytearray(end + _ROOM))
            larger[: self.length] = self.content
            self._memory = larger
        self._memory[self.length : end] = part
        self.length = end
