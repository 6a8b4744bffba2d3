"""Where each file lies inside a tar, without unpacking it.

A tar inside a tar (ILSVRC2012_img_train.tar holds one a class) is walked in place too. The
walk is stricter than Python's tarfile, which ends early and silently at a damaged header:
every header's checksum has to hold, every member to lie inside, and the end marker to be there.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from zlib import adler32

from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import Finding

BLOCK: Final = 512
_END: Final = bytes(BLOCK)
_REGULAR: Final = frozenset(b"0\x007")
_DIRECTORY: Final = ord("5")
_SPARSE: Final = ord("S")
# Types whose size field says nothing about the bytes that follow: nothing follows.
_WITHOUT_DATA: Final = {
    ord("1"): "hard-link",
    ord("2"): "link",
    ord("3"): "device",
    ord("4"): "device",
    ord("6"): "fifo",
}
_LONG_NAME: Final = ord("L")
_LONG_LINK: Final = ord("K")
_PAX_LOCAL: Final = frozenset(b"xX")
_PAX_GLOBAL: Final = ord("g")
# A name or an extended header is read into memory, so it may not ask for more than this.
_LONGEST_HEADER: Final = 1 << 20
_DEEPEST: Final = 4  # tars inside one another, the outermost included
_CHUNK: Final = 4 << 20
_REPORT_EVERY: Final = 1024  # members
_COMPRESSED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip --keep"),
    b"BZh": ("bzip2", "bunzip2 --keep"),
    b"\xfd7zXZ\x00": ("xz", "unxz --keep"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd --keep"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf": ("7z", "7z x"),
}


class Member(NamedTuple):
    """A regular file of ``length`` bytes at ``offset`` of the outermost archive.

    ``name`` has ``/`` between its parts, never a ``..`` or an empty one; a tar inside the
    archive is a part of its own: ``n01440764.tar/n01440764_18.JPEG``. Bytes that are no UTF-8
    are surrogates, as in ``os.fsdecode``.
    """

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class TarIndex:
    """The files of an archive in its own order, what was refused, its size in bytes and md5."""

    members: list[Member]
    refused: list[Finding]
    size: int
    md5: str | None


def open_regular(path: str | Path) -> int:
    """Return a read-only descriptor of a regular file; never blocks on a FIFO or a device.

    DataShardsError in one line if it cannot be opened or is something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataShardsError(f"{path}: is no regular file")
    return descriptor


def refuse_compressed(path: str | Path) -> None:
    """Raise UsageError with the cure if a file is a compressed archive by its first bytes."""
    descriptor = open_regular(path)
    try:
        start = os.pread(descriptor, 8, 0)
    finally:
        os.close(descriptor)
    for magic, (name, cure) in _COMPRESSED.items():
        if start.startswith(magic):
            raise UsageError(
                f"{path}: is {name}-compressed and cannot be read in place; unpack it first "
                f"({cure} {Path(path).name})"
            )


def index_tar(
    path: str | Path,
    *,
    md5: bool = False,
    enter: Callable[[str], bool] | None = None,
    on_bytes: Callable[[int], object] | None = None,
) -> TarIndex:
    """Return every regular file of the tar ``path`` and of the tars inside it.

    With ``md5`` the archive is read whole, once, and its md5 computed on the way; without, only
    its headers are read. ``enter(name)`` says whether a tar inside is worth walking, by default
    all are. ``on_bytes`` is told how far the walk has come, in bytes since the
    last call. Links, devices, sparse files, absolute names and ``..`` are refused, as findings.
    DataShardsError names an archive that is truncated or damaged, UsageError one that is
    compressed.
    """
    refuse_compressed(path)
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        reader = _HashingReader(descriptor, size) if md5 else _Reader(descriptor)
        walk = _Walk(reader, str(path), enter, on_bytes)
        walk.run("", 0, size, 1)
        digest = reader.finish() if isinstance(reader, _HashingReader) else None
        walk.report(size)
    except OSError as error:
        raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    return TarIndex(walk.members, walk.refused, size, digest)


class _Reader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


class _HashingReader(_Reader):
    """Reads the whole file in order, once, and serves the headers from what it has just read."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor)
        self._size = size
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunk = b""
        self._chunk_offset = 0

    def read(self, offset: int, length: int) -> bytes:
        while self._next < min(offset + length, self._size) and self._advance():
            pass
        start = offset - self._chunk_offset
        if start >= 0 and start + length <= len(self._chunk):
            return self._chunk[start : start + length]
        return super().read(offset, length)  # across two chunks

    def finish(self) -> str:
        while self._advance():
            pass
        return self._md5.hexdigest()

    @property
    def _next(self) -> int:
        return self._chunk_offset + len(self._chunk)

    def _advance(self) -> bool:
        offset = self._next
        chunk = super().read(offset, _CHUNK)
        if not chunk:
            return False
        self._chunk, self._chunk_offset = chunk, offset
        self._md5.update(chunk)
        return True


class _Walk:
    def __init__(
        self,
        reader: _Reader,
        archive: str,
        enter: Callable[[str], bool] | None,
        on_bytes: Callable[[int], object] | None,
    ) -> None:
        self._reader = reader
        self._archive = archive
        self._enter = enter
        self._on_bytes = on_bytes
        self._reported = 0
        self.members: list[Member] = []
        self.refused: list[Finding] = []

    def report(self, position: int) -> None:
        if self._on_bytes is not None and position > self._reported:
            self._on_bytes(position - self._reported)
            self._reported = position

    def run(self, prefix: str, begin: int, end: int, depth: int) -> None:
        where = f"{self._archive}/{printable(prefix[:-1])}" if prefix else self._archive
        for raw, offset, length, reason in _headers(self._reader, where, begin, end):
            name = _safe_name(raw)
            if name is None:
                reason = "unsafe-name"
                name = raw
            if not reason and name[-4:].lower() == ".tar":
                if self._enter is not None and not self._enter(prefix + name):
                    continue
                if depth < _DEEPEST:
                    self.run(f"{prefix}{name}/", offset, offset + length, depth + 1)
                    continue
                reason = "nested-too-deep"
            if reason:
                self.refused.append(Finding(printable(prefix + name), "refused", (reason,)))
                continue
            self.members.append(Member(prefix + name, offset, length))
            if len(self.members) % _REPORT_EVERY == 0:
                self.report(offset)


def _headers(
    reader: _Reader, where: str, position: int, end: int
) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, offset, length, reason for refusing it or "") of all but the folders."""
    shared: dict[str, str] = {}
    extended: dict[str, str] = {}
    long_name: str | None = None
    pending = False  # an extended header waits for its file
    while True:
        header = reader.read(position, BLOCK) if position + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise DataShardsError(f"{where}: is truncated: it has no end marker")
        if header == _END:
            if pending:
                raise DataShardsError(f"{where}: is damaged: an extended header without its file")
            _check_rest(reader, where, position, end)
            return
        _check_sum(header, where, position)
        kind = header[156]
        attributes = {**shared, **extended} if shared or extended else extended
        length = _size(header, attributes.get("size"), where, position)
        data = position + BLOCK
        if kind in _WITHOUT_DATA:
            length = 0
        elif kind == _SPARSE:
            data = _after_sparse_maps(reader, header, data, end, where)
        if data + length > end:
            name = printable(_name(header))
            raise DataShardsError(
                f"{where}: is truncated: {name} of {length} bytes ends after the archive"
            )
        position = data + -(-length // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _LONG_LINK):
            text = _payload(reader, where, data, length)
            if kind == _LONG_NAME:
                long_name = text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            pending = True
            continue
        if kind in _PAX_LOCAL:
            extended = _pax(_payload(reader, where, data, length), where)
            pending = True
            continue
        if kind == _PAX_GLOBAL:
            shared.update(_pax(_payload(reader, where, data, length), where))
            continue
        sparse = kind == _SPARSE or any(key.startswith("GNU.sparse.") for key in attributes)
        name = attributes.get("path") or long_name or _name(header)
        extended, long_name, pending = {}, None, False
        if kind == _DIRECTORY or (kind == 0 and name.endswith("/")):
            continue
        if sparse:
            yield name, data, length, "sparse"
        elif kind in _REGULAR:
            yield name, data, length, ""
        else:
            yield name, data, length, _WITHOUT_DATA.get(kind, "unknown-type")


def _check_rest(reader: _Reader, where: str, position: int, end: int) -> None:
    """Nothing but zeros may follow the end marker; a second archive would be lost silently."""
    while position < end:
        chunk = reader.read(position, min(_CHUNK, end - position))
        if not chunk:
            return
        if chunk.count(0) != len(chunk):
            raise DataShardsError(f"{where}: is damaged: there are data after its end marker")
        position += len(chunk)


def _check_sum(header: bytes, where: str, position: int) -> None:
    stored = _octal(header[148:156])
    # The low half of adler32 is 1 plus the sum of the bytes modulo 65521, which 256 bytes do not
    # reach: five times faster than sum(). The field itself counts as eight spaces.
    rest = header[:148] + b" " * 8 + header[156:]
    total = (adler32(rest[:256]) & 0xFFFF) + (adler32(rest[256:]) & 0xFFFF) - 2
    if stored == total:
        return
    # Some old writers added the bytes as signed numbers.
    if stored != total - 256 * sum(byte > 127 for byte in rest):
        raise DataShardsError(
            f"{where}: is damaged or no tar: the header at byte {position} has a wrong checksum"
        )


def _octal(field: bytes) -> int | None:
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return None


def _size(header: bytes, override: str | None, where: str, position: int) -> int:
    field = header[124:136]
    size: int | None
    if override is not None:
        size = int(override) if override.isascii() and override.isdigit() else None
    elif field[0] == 0x80:  # base 256, for sizes from 8 GiB
        size = int.from_bytes(field[1:], "big")
    else:
        size = _octal(field)
    if size is None or size < 0:
        raise DataShardsError(f"{where}: is damaged: the header at byte {position} has no size")
    return size


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _payload(reader: _Reader, where: str, offset: int, length: int) -> bytes:
    if length > _LONGEST_HEADER:
        raise DataShardsError(f"{where}: is damaged: an extended header of {length} bytes")
    return reader.read(offset, length)


def _pax(content: bytes, where: str) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = content[len(length) + 1 : end - 1].partition(b"=")
        if not equals or end > len(content) or content[end - 1 : end] != b"\n":
            raise DataShardsError(f"{where}: is damaged: an extended header that is malformed")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[end:]
    return records


def _after_sparse_maps(reader: _Reader, header: bytes, data: int, end: int, where: str) -> int:
    """Skip the blocks that continue the map of an old GNU sparse file."""
    more = header[482]
    while more:
        block = reader.read(data, BLOCK) if data + BLOCK <= end else b""
        if len(block) < BLOCK:
            raise DataShardsError(f"{where}: is truncated in the map of a sparse file")
        more = block[504]
        data += BLOCK
    return data


def _safe_name(name: str) -> str | None:
    """Return ``name`` without empty parts and ``.``, None if it is absolute or has ``..``."""
    if not name or name[0] == "/" or "\0" in name:
        return None
    if "//" in name or "./" in name or "/." in name:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            return None
        return "/".join(parts)
    return name if name not in ("..", ".") else None


def printable(name: str) -> str:
    """Return a file's name as one line of plain text: odd bytes and control characters escaped."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
