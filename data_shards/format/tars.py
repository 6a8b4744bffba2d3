"""Write shards as tar files and read them back from the disk.

The members are those of webdataset's ``TarWriter(mtime=0)``, and ``tarfile`` makes their headers in
both. ``TarWriter`` is not used: its package imports torch, which takes 1 s and 460 MB in every
worker, nearly all of the memory that a worker may have. It also writes pax headers for names that
are not ASCII, where a shard has plain ones.
"""

import hashlib
import io
import mmap
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from data_shards.errors import DataShardsError
from data_shards.system.file_system import forget_pages
from data_shards.system.files import naming

BLOCK = tarfile.BLOCKSIZE  # a member is a header block and its payload, padded to whole blocks
RECORD = tarfile.RECORDSIZE  # two blocks of zeros end a tar, padded to whole records
_ZEROS = bytes(BLOCK)
_STRETCH = 4 * 2**20  # bytes that are written and synced together
_PIECE = 2**18  # bytes that are read back and compared together, while they are in the cache


def header(name: str, size: int) -> bytes:
    """Return the header block of a member of ``size`` bytes.

    ValueError if the name has more than 100 bytes or the size is 8 GiB or more.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o444
    info.uname = info.gname = "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


def read_header(block: bytes) -> tuple[str, int, bool]:
    """Return the name and the size of a member, and whether :func:`header` makes this block.

    ``tarfile.HeaderError`` if it is no header.
    """
    try:
        name, size = block.partition(b"\0")[0].decode(), int(block[124:135], 8)
        if header(name, size) == block:  # nearly always; frombuf would double the time
            return name, size, True
    except ValueError:
        pass
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return info.name, info.size, False


def padding(size: int, unit: int = BLOCK) -> int:
    """Return the number of zeros behind ``size`` bytes."""
    return -size % unit


class TarStream:
    """Writes a tar to an empty file that is open for reading and writing, and reads it back.

    A thread syncs each stretch, reads it from the disk and compares it with what was written,
    while the next stretch gathers: the disk works while images are examined. Two buffers take
    turns, because memory that is used again costs no page faults and stays in the caches.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._gathering, self._storing = io.BytesIO(), io.BytesIO()
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
            buffer.write(header(f"{key}.{extension}", size))
            offsets[extension] = self._begin + buffer.tell()
            buffer.write(payload)
            buffer.write(_ZEROS[: padding(size)])
        if buffer.tell() >= _STRETCH:
            self._flush()
        return offsets

    def finish(self, alive: Callable[[], object] = lambda: None) -> tuple[int, str]:
        """End the tar; return its bytes and its sha256 as read back.

        DataShardsError if the disk returns other bytes than were written. ``alive()`` is called
        when a wait ends.
        """
        self._gathering.write(bytes(2 * BLOCK))
        self._gathering.write(bytes(padding(self._begin + self._gathering.tell(), RECORD)))
        self._flush()
        alive()
        self._wait()
        alive()
        os.fsync(self._file.fileno())
        return self._begin, self._whole.hexdigest()

    def close(self) -> None:
        """End the thread, also after an error."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _flush(self) -> None:
        self._wait()
        full = self._gathering
        self._gathering, self._storing = self._storing, full
        self._gathering.seek(0)
        self._gathering.truncate(_STRETCH)  # give back what a large sample needed
        self._pending = self._thread.submit(self._store, full, self._begin)
        self._begin += full.tell()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _store(self, buffer: io.BytesIO, begin: int) -> None:
        # A buffer whose memory is in use can be neither extended nor cut.
        with buffer.getbuffer() as memory, memory[: buffer.tell()] as content:
            self._write(content, begin)
            for first in range(0, len(content), _PIECE):
                with content[first : first + _PIECE] as written:
                    self._compare(written, begin + first)

    def _write(self, content: memoryview, begin: int) -> None:
        descriptor = self._file.fileno()
        with naming(Path(self._file.name)):
            self._file.write(content)
            self._file.flush()
            os.fdatasync(descriptor)
        # Drop the synced pages from the cache, so that the bytes read back come from the disk.
        # Only whole pages are dropped, so begin with the page that holds the end of the last
        # stretch.
        page = begin - begin % mmap.PAGESIZE
        forget_pages(descriptor, page, begin + len(content) - page)

    def _compare(self, written: memoryview, begin: int) -> None:
        count = os.preadv(self._file.fileno(), [self._piece], begin)
        if count < len(written) or not self._piece.startswith(written):
            raise DataShardsError(
                f"{self._file.name}: read back from the disk it is not what was written; "
                "the disk or the memory of this machine is at fault"
            )
        self._whole.update(written)
