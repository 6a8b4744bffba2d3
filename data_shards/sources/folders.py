"""List the images of a folder or an archive, folder by folder, without opening them."""

import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from tqdm import tqdm

from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import Finding
from data_shards.litter import is_litter, litter_in
from data_shards.sources.archives import index_tar, is_tar, printable

IMAGE_ENDINGS: Final = frozenset({"jpeg", "jpg", "png"})
# Formats that are taken if they are to be stored as PNG.
REENCODED_ENDINGS: Final = frozenset({"bmp", "gif", "tif", "tiff", "webp"})
# Formats that are not taken otherwise, and other names of JPEGs.
OTHER_IMAGE_ENDINGS: Final = frozenset(
    {"avif", "bmp", "gif", "heic", "heif", "jfif", "jpe", "jxl", "tif", "tiff", "webp"}
)

_DEEPEST: Final = 32  # folders inside one another
# Files that often lie beside images and are ignored.
_JUNK_ENDINGS: Final = {
    *("csv", "db", "gz", "html", "ini", "json", "log", "mat", "md", "md5", "pdf", "py", "sh"),
    *("tgz", "txt", "xml", "yaml", "zip"),
}
_KINDS: Final = {
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class File(NamedTuple):
    """A file: ``length`` bytes at ``offset`` of ``path``, called ``name`` in its folder."""

    name: str
    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of one folder, and its other files that may be meant as images.

    ``parts`` are the names on the way from the source to the folder; a tar is one of them. If
    the source is itself a tar, its name is the first. ``archive`` is the name of the outermost
    tar, "" if there is none.
    """

    parts: tuple[str, ...]
    archive: str
    images: list[File] = field(default_factory=list)
    other_files: list[File] = field(default_factory=list)

    @property
    def others(self) -> list[str]:
        """The names of its other files."""
        return [file.name for file in self.other_files]


class Scanner:
    """Walks sources and collects findings, archives, ignored files and ignored folders.

    ``wanted(parts)`` says whether a folder or tar is worth entering, so that a tar of 138 GB is
    not read in vain. ``md5``: compute the md5 of each archive. ``progress``: show a bar on stderr.
    ``endings`` are those of images.
    """

    def __init__(
        self,
        wanted: Callable[[tuple[str, ...]], bool],
        *,
        md5: bool,
        progress: bool,
        endings: Collection[str] = IMAGE_ENDINGS,
    ) -> None:
        self._wanted = wanted
        self._endings = endings
        self._md5 = md5
        self._progress = progress
        self.findings: list[Finding] = []
        self.archives: dict[str, str | None] = {}  # name -> md5
        self.ignored: list[str] = []
        self.litter: set[str] = set()  # folders that are hidden or another program's

    def scan(self, source: Path) -> Iterator[Folder]:
        """Yield every folder that holds files, in no particular order.

        UsageError if ``source`` does not exist, DataShardsError if an archive is damaged.
        """
        try:
            root = os.path.realpath(source, strict=True)
        except OSError as error:
            raise UsageError(f"{source}: cannot be read ({error.strerror})") from None
        if os.path.isdir(root):
            with tqdm(
                desc=f"listing {printable(source.name)}",
                unit=" files",
                disable=not self._progress,
                file=sys.stderr,
            ) as bar:
                yield from self._walk(root, bar.update)
        elif self._wanted((source.name,)):
            yield from self._tar((source.name,), root)

    def _walk(self, root: str, on_files: Callable[[int], object]) -> Iterator[Folder]:
        waiting: list[tuple[str, tuple[str, ...]]] = [(root, ())]
        while waiting:
            path, parts = waiting.pop()
            folder = Folder(parts, archive="")
            tars = []
            try:
                entries = os.scandir(path)
            except OSError as error:
                if not parts:
                    raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
                self._refuse(parts, "unreadable-folder", images=0)
                continue
            with entries:
                for entry in entries:
                    name = entry.name
                    inside = (*parts, name)
                    if is_litter(name):
                        self._ignore(inside, folder=entry.is_dir(follow_symlinks=False))
                    elif entry.is_dir(follow_symlinks=False):
                        if len(parts) >= _DEEPEST:
                            self._refuse(inside, "too-deep", images=0)
                        elif self._wanted(inside):
                            waiting.append((entry.path, inside))
                    elif is_image(name, self._endings):
                        self._add_image(folder, entry, root)
                    elif not entry.is_file(follow_symlinks=False):
                        kind, images = _kind(entry, root)
                        self._refuse(inside, kind, images=images)
                    elif is_tar(name):
                        tars.append((entry.path, inside))
                    else:
                        self._other(folder, File(name, entry.path, 0, _length(entry)))
            on_files(len(folder.images))
            if folder.images or folder.other_files:
                yield folder
            for tar, inside in sorted(tars):
                if self._wanted(inside):
                    yield from self._tar(inside, tar)

    def _add_image(self, folder: Folder, entry: os.DirEntry[str], root: str) -> None:
        try:
            facts = entry.stat(follow_symlinks=False)
            path = entry.path
            if stat.S_ISLNK(facts.st_mode):
                # Accept a link only if its target lies inside the source.
                path = os.path.realpath(path, strict=True)
                if not path.startswith(root.rstrip("/") + "/"):
                    self._refuse((*folder.parts, entry.name), "link-out-of-source")
                    return
                facts = os.stat(path)
        except OSError:
            self._refuse((*folder.parts, entry.name), "unreadable")
            return
        if stat.S_ISREG(facts.st_mode):
            folder.images.append(File(entry.name, path, 0, facts.st_size))
        else:
            kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "not-a-file")
            self._refuse((*folder.parts, entry.name), kind)

    def _other(self, folder: Folder, file: File) -> None:
        if is_litter(file.name) or file.name.rpartition(".")[2].lower() in _JUNK_ENDINGS:
            self._ignore((*folder.parts, file.name), folder=False)
        else:
            folder.other_files.append(file)

    def _tar(self, parts: tuple[str, ...], path: str) -> Iterator[Folder]:
        name = parts[-1]
        try:
            size = os.stat(path).st_size
            with tqdm(
                desc=f"{'md5 of' if self._md5 else 'listing'} {printable(name)}",
                total=size,
                unit="B",
                unit_scale=True,
                disable=not self._progress,
                file=sys.stderr,
            ) as bar:
                index = index_tar(
                    path,
                    md5=self._md5,
                    enter=lambda inner: self._enter(parts, inner.split("/")),
                    on_bytes=bar.update,
                )
        except OSError as error:
            raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
        self.archives[name] = index.md5
        prefix = "/".join(map(printable, parts))
        self.findings += [
            replace(finding, path=f"{prefix}/{finding.path}")
            for finding in index.refused
            if not litter_in(finding.path.split("/"))
        ]
        folders: dict[str, Folder] = {}
        for inner, offset, length in index.members:
            where, _, file = inner.rpartition("/")
            folder = folders.get(where)
            if folder is None:
                below = tuple(where.split("/")) if where else ()
                folder = folders[where] = Folder((*parts, *below), archive=name)
            found = File(file, path, offset, length)
            if is_image(file, self._endings):
                folder.images.append(found)
            else:
                self._other(folder, found)
        del index
        for folder in folders.values():
            litter = litter_in(folder.parts[len(parts) :])
            if litter:
                self._ignore((*parts, *litter.split("/")), folder=True)
            elif self._wanted(folder.parts):
                yield folder

    def _enter(self, parts: tuple[str, ...], inner: Sequence[str]) -> bool:
        """Return whether the tar ``inner`` of the tar ``parts`` is worth reading."""
        litter = litter_in(inner)
        if not litter:
            return self._wanted((*parts, *inner))
        self._ignore((*parts, *litter.split("/")), folder=litter != "/".join(inner))
        return False

    def _refuse(self, parts: tuple[str, ...], reason: str, *, images: int = 1) -> None:
        path = "/".join(map(printable, parts))
        self.findings.append(Finding(path, "refused", (reason,), images=images))

    def _ignore(self, parts: tuple[str, ...], *, folder: bool) -> None:
        path = "/".join(map(printable, parts))
        if folder:
            self.litter.add(path)
        else:
            self.ignored.append(path)


def _length(entry: os.DirEntry[str]) -> int:
    """Return the bytes of a regular file; 0 if it is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _kind(entry: os.DirEntry[str], root: str) -> tuple[str, int]:
    """Return the kind of a file that is neither regular nor a folder, and how many images it holds.

    It is not opened, so the number is 0 (unknown) if it is or may be a folder or an archive.
    The images of a folder below ``root`` are taken where they lie.
    """
    images = 0 if is_tar(entry.name) else 1
    try:
        if not entry.is_symlink():
            return _KINDS.get(stat.S_IFMT(entry.stat().st_mode), "not-a-file"), images
        if entry.is_dir():
            target = os.path.realpath(entry.path)
            return "link-to-folder", int(f"{target}/".startswith(root.rstrip("/") + "/"))
        return "link", images if entry.is_file() else 0
    except OSError:
        return "unreadable", 0


def is_image(name: str, endings: Collection[str] = IMAGE_ENDINGS) -> bool:
    """Return whether a name is that of an image: .JPEG, .jpg or .png in any case, not hidden."""
    return name.rpartition(".")[2].lower() in endings and name[0] != "."
