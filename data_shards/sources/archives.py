"""Where each file lies inside a tar, without unpacking it.

``tarfile`` reads the headers, also those of a tar inside a tar (ILSVRC2012_img_train.tar has one a
class). ``tarfile`` ends early and silently at a damaged header, and it reads as much as a header
asks for. Here every member has to lie inside, the end marker has to be there with nothing after it,
and headers are limited in size.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import Finding
from data_shards.system.files import open_regular

_REFUSED: Final = {
    tarfile.LNKTYPE: "hard-link",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
}
# All headers of one member together: long names, extended headers, maps of sparse files.
_LONGEST_HEADER: Final = 1 << 16
_PACKED: Final = re.compile(
    r"(.+?)(?:\.tar)?\.(?:zip|7z|rar|t?gz|t?bz2|tbz|t?xz|t?zst)", re.IGNORECASE
)
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
    with open_regular(Path(path)) as file:
        try:
            archive = _Archive(file.fileno(), md5=md5)
            _refuse_compressed(Path(path), archive.read(0, 8))
            walk = _Walk(archive, str(path), enter, on_bytes)
            walk.run("", 0, archive.size, 1)
            digest = archive.finish()
            walk.report(archive.size)
        except OSError as error:
            raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
    return TarIndex(walk.members, walk.refused, archive.size, digest)


def _refuse_compressed(path: Path, start: bytes) -> None:
    for magic, (name, cure) in _COMPRESSED.items():
        if start.startswith(magic):
            raise UsageError(
                f"{path}: is {name}-compressed and cannot be read in place; unpack it first "
                f"({cure} {path.name})"
            )


class _Archive:
    """Reads an archive at any place; with ``md5`` each byte goes through the digest once."""

    def __init__(self, descriptor: int, *, md5: bool) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._chunk = b""
        self._begin = 0  # of the chunk, which is the last that was digested

    def read(self, offset: int, length: int) -> bytes:
        if self._md5 is not None:
            self._digest(offset + length)
            start = offset - self._begin
            if start >= 0 and start + length <= len(self._chunk):
                return self._chunk[start : start + length]
        return os.pread(self._descriptor, length, offset)

    def finish(self) -> str | None:
        if self._md5 is None:
            return None
        self._digest(self.size)
        return self._md5.hexdigest()

    def _digest(self, end: int) -> None:
        assert self._md5 is not None
        while (place := self._begin + len(self._chunk)) < end:
            chunk = os.pread(self._descriptor, _CHUNK, place)
            if not chunk:
                return
            self._chunk, self._begin = chunk, place
            self._md5.update(chunk)


class _Window(io.RawIOBase):
    """The bytes from ``begin`` to ``end`` of an archive, as a file for ``tarfile``.

    ``left`` limits the bytes that are read; the walk resets it for each member.
    """

    def __init__(self, archive: _Archive, begin: int, end: int) -> None:
        super().__init__()
        self._archive = archive
        self._begin = begin
        self._size = end - begin
        self._place = 0
        self.left = _LONGEST_HEADER

    def read(self, size: int = -1, /) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        size = max(0, min(size, self._size - self._place))
        content = self._archive.read(self._begin + self._place, size)
        self._place += len(content)
        return content

    def seek(self, place: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = place
        return place

    def tell(self) -> int:
        return self._place


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]


class _Walk:
    def __init__(
        self,
        archive: _Archive,
        path: str,
        enter: Callable[[str], bool] | None,
        on_bytes: Callable[[int], object] | None,
    ) -> None:
        self._archive = archive
        self._path = path
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
        where = f"{self._path}/{printable(prefix[:-1])}" if prefix else self._path
        for info in _headers(self._archive, where, begin, end):
            if info.isdir():
                continue
            offset = begin + info.offset_data
            name = _safe_name(info.name)
            reason = _reason(info)
            if name is None:
                reason = "unsafe-name"
                name = info.name
            if not reason and is_tar(name):
                if self._enter is not None and not self._enter(prefix + name):
                    continue
                if depth < _DEEPEST:
                    self.run(f"{prefix}{name}/", offset, offset + info.size, depth + 1)
                    continue
                reason = "nested-too-deep"
            if reason:
                images = 0 if is_tar(name) else 1
                path = printable(prefix + name)
                self.refused.append(Finding(path, "refused", (reason,), images=images))
                continue
            self.members.append(Member(prefix + name, offset, info.size))
            if len(self.members) % _REPORT_EVERY == 0:
                self.report(offset)


def _reason(info: tarfile.TarInfo) -> str:
    """Return why a member is refused, "" if it is a plain file."""
    if info.issparse():
        return "sparse"
    return "" if info.isreg() else _REFUSED.get(info.type, "unknown-type")


def _headers(archive: _Archive, where: str, begin: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield all members; ``offset_data`` counts from ``begin``."""
    window = _Window(archive, begin, end)
    position = 0
    try:
        with _Tar(fileobj=window, encoding="utf-8", errors="surrogateescape") as tar:
            # In a tar without members, next() of Python 3.10 seeks to a place before its begin.
            while tar.offset and (info := tar.next()) is not None:
                tar.members.clear()  # a million of them take more than a gigabyte
                window.left = _LONGEST_HEADER
                size = f"{printable(info.name)} of {info.size} bytes"
                # A negative size, also one inside a sparse file, would lead back, for ever.
                if info.size < 0 or tar.offset <= position:
                    raise tarfile.ReadError(size)
                position = tar.offset
                if position > end - begin:
                    raise DataShardsError(f"{where}: is truncated: {size} ends after the archive")
                yield info
    # A hostile map of a sparse file, or a pile of long names, raises what Python does.
    except (tarfile.TarError, ValueError, IndexError, RecursionError) as error:
        raise DataShardsError(f"{where}: is damaged, truncated or no tar: {error}") from None
    _check_end(archive, where, begin + position, end)


def _check_end(archive: _Archive, where: str, position: int, end: int) -> None:
    """Refuse a tar that ends without its marker, or has anything but zeros after it."""
    if position + tarfile.BLOCKSIZE > end:
        raise DataShardsError(f"{where}: is truncated: it has no end marker")
    if any(archive.read(position, tarfile.BLOCKSIZE)):
        raise DataShardsError(
            f"{where}: is damaged or no tar: the header at byte {position} is none"
        )
    while position < end:
        chunk = archive.read(position, min(_CHUNK, end - position))
        if not chunk:
            return
        if chunk.count(0) != len(chunk):
            raise DataShardsError(f"{where}: is damaged: there are data after its end marker")
        position += len(chunk)


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


def packed_name(name: str) -> str:
    """Return the name of a compressed archive without its endings, "" if it is none by its name."""
    found = _PACKED.fullmatch(name)
    return found[1] if found else ""


def is_tar(name: str) -> bool:
    """Whether a name is that of a tar."""
    return name[-4:].lower() == ".tar"


def printable(name: str) -> str:
    """Return a file's name as one line of plain text: odd bytes and control characters escaped."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
