"""Examine all images below some paths and find those that occur more than once."""

import bisect
import itertools
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from data_shards.convert.publish import groups_of_equal
from data_shards.convert.workers import Crash, map_surviving
from data_shards.errors import DataShardsError, UsageError
from data_shards.findings import CRASHES, Finding
from data_shards.format.manifest import MANIFEST_NAME, parse_manifest
from data_shards.images.duplicates import DuplicateFinder
from data_shards.images.examine import IMAGE_SUFFIXES, Examination, examine_item, full_pixels
from data_shards.sources.archives import is_tar, packed_name, printable
from data_shards.sources.folders import IMAGE_ENDINGS, File, Folder, Scanner
from data_shards.sources.listing import Item

R = TypeVar("R")

_CHUNK = 32
_SECONDS = 60.0  # for one image, from a slow disk too


class Check:
    """One check of ``paths``; :meth:`run` yields what it finds.

    Afterwards ``images`` is the number of images that were examined, ``seconds`` the time
    that it took, ``flags`` how often each flag occurred, ``others`` the number of files whose
    names are not those of images, ``packed`` the compressed archives among them, and ``litter``
    the folders that are hidden or another program's.
    """

    def __init__(self, paths: Sequence[Path], *, workers: int, progress: bool) -> None:
        self._paths = paths
        self._workers = workers
        self._progress = progress
        self._indexed: dict[Path, frozenset[str]] = {}  # folder -> names of shards
        self.images = 0
        self.seconds = 0.0
        self.flags: Counter[str] = Counter()
        self.others = 0
        self.packed: list[str] = []
        self.litter: list[str] = []

    def run(self) -> Iterator[Finding]:
        """Yield findings: on files that were not taken, then on images, then on duplicates.

        Their order depends on the names of the files alone. UsageError if a path does not
        exist or lies inside another.
        """
        _refuse_overlap(self._paths)
        images = _Images()
        for path in self._paths:
            yield from self._find(path, images)
        self.images = len(images)
        begin = time.monotonic()
        rows = DuplicateFinder()
        results = self._map(_examine, images.all(), len(images), "checking")
        for row, result in enumerate(results):
            if isinstance(result, Crash):
                rows.add("", "")
                verdict, reason = CRASHES[result.cause]
                yield Finding(images.name(row), verdict, (reason,))
                continue
            whole = result.verdict in ("ok", "suspect")
            rows.add(result.sha256 if whole else "", result.pixels if whole else "")
            self.flags.update(result.flags)
            if result.verdict != "ok" or result.flags:
                yield Finding(images.name(row), result.verdict, result.reasons, result.flags)
        yield from self._duplicates(rows, images)
        self.seconds = time.monotonic() - begin

    def _find(self, path: Path, images: "_Images") -> Iterator[Finding]:
        """Add the images below ``path``; yield what is refused there."""
        tars: list[tuple[str, ...]] = []

        def wanted(parts: tuple[str, ...]) -> bool:
            # Archives later, one by one: a damaged one must not end the walk.
            if is_tar(parts[-1]):
                tars.append(parts)
                return False
            return True

        if not path.is_dir():
            yield from self._find_in_file(path, str(path.parent), images, given=True)
            return
        scanner = Scanner(wanted, md5=False, progress=self._progress)
        yield from self._take(scanner, path, str(path), images)
        for parts in sorted(tars):
            tar = path.joinpath(*parts)
            yield from self._find_in_file(tar, str(tar.parent), images, given=False)

    def _find_in_file(
        self, path: Path, above: str, images: "_Images", *, given: bool
    ) -> Iterator[Finding]:
        """Add the images of an archive, or one image; ``given``: it is one of the paths."""
        try:
            facts = os.stat(path)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(facts.st_mode):
            yield Finding(printable(str(path)), "refused", ("not-a-file",))
        elif path.suffix.lower() == ".tar":
            allow_webp = self._is_indexed(path)
            scanner = Scanner(
                lambda parts: True,
                md5=False,
                progress=self._progress,
                endings=IMAGE_ENDINGS | {"webp"} if allow_webp else IMAGE_ENDINGS,
            )
            try:
                yield from self._take(scanner, path, above, images, allow_webp=allow_webp)
            except UsageError:
                if given:
                    raise
                yield Finding(printable(str(path)), "refused", ("compressed-archive",))
            except DataShardsError:
                yield Finding(printable(str(path)), "corrupt", ("damaged-archive",))
        else:
            folder = Folder((), archive="")
            folder.images.append(File(path.name, str(path), 0, facts.st_size))
            images.add(above, [folder])

    def _is_indexed(self, tar: Path) -> bool:
        """Return whether ``index`` took this tar as a shard, so that it may hold WebP images."""
        folder = tar.parent
        if folder not in self._indexed:
            try:
                manifest, _ = parse_manifest(folder / MANIFEST_NAME)
                shards = manifest.shards if manifest.is_indexed else ()
            except DataShardsError:  # there is none, or verify names what is wrong with it
                shards = ()
            self._indexed[folder] = frozenset(shard.name for shard in shards)
        return tar.name in self._indexed[folder]

    def _take(
        self,
        scanner: Scanner,
        source: Path,
        above: str,
        images: "_Images",
        *,
        allow_webp: bool = False,
    ) -> Iterator[Finding]:
        folders = sorted(scanner.scan(source), key=lambda folder: folder.parts)
        images.add(above, folders, allow_webp=allow_webp)
        self.others += len(scanner.ignored)
        self.packed += [path for path in scanner.ignored if packed_name(path)]
        self.litter += scanner.litter
        findings = [
            replace(found, path=os.path.join(printable(above), found.path))
            for found in scanner.findings
        ]
        for folder in folders:
            for name in folder.others:
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    shown = printable(os.path.join(above, *folder.parts, name))
                    findings.append(Finding(shown, "refused", ("extension",)))
                else:
                    self.others += 1
                    self.packed += [name] if packed_name(name) else []
        yield from sorted(findings, key=lambda found: found.path)

    def _duplicates(self, rows: DuplicateFinder, images: "_Images") -> Iterator[Finding]:
        yield from _repeats(rows.same_bytes(), "same-bytes", images)
        groups = rows.same_pixels()
        members = list(itertools.chain.from_iterable(groups))
        items = (images.image(row) for row in members)
        hashes = dict(
            zip(members, self._map(_full_pixels, items, len(members), "comparing"), strict=True)
        )
        yield from _repeats(groups_of_equal(groups, hashes), "same-pixels", images)

    def _map(
        self, function: Callable[["_Image"], R], items: Iterable["_Image"], total: int, title: str
    ) -> Iterator[R | Crash]:
        results = map_surviving(
            function, items, workers=self._workers, chunk=_CHUNK, seconds=_SECONDS
        )
        hidden = not self._progress
        yield from tqdm(results, desc=title, total=total, unit=" images", disable=hidden)


class _Image(NamedTuple):
    """An image to examine."""

    item: Item
    allow_webp: bool


def _examine(image: _Image) -> Examination:
    return examine_item(image.item, allow_webp=image.allow_webp)[0]


def _full_pixels(image: _Image) -> str:
    examination, content = examine_item(image.item, allow_webp=image.allow_webp)
    # Between the two looks the file may have changed.
    return full_pixels(content) if examination.verdict in ("ok", "suspect") else ""


def _repeats(groups: Iterable[Sequence[int]], reason: str, images: "_Images") -> Iterator[Finding]:
    for first, *repeated in groups:
        for row in repeated:
            yield Finding(images.name(row), "duplicate", (reason,), of=images.name(first))


def _refuse_overlap(paths: Sequence[Path]) -> None:
    real = [Path(os.path.realpath(path)) for path in paths]
    for (outer, above), (inner, below) in itertools.permutations(zip(paths, real, strict=True), 2):
        if above == below or above in below.parents:
            raise UsageError(f"{inner}: lies inside {outer}; give it once")


class _Images:
    """All images in order, by row; the images of a folder share what is known of it."""

    def __init__(self) -> None:
        self._folders: list[tuple[str, Folder, bool]] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, above: str, folders: Sequence[Folder], *, allow_webp: bool = False) -> None:
        """Append the images of ``folders``, which lie in the folder ``above``."""
        for folder in folders:
            folder.images.sort()
            self._folders.append((above, folder, allow_webp))
            self._ends.append(len(self) + len(folder.images))

    def name(self, row: int) -> str:
        return self.image(row).item.source

    def image(self, row: int) -> _Image:
        place = bisect.bisect_right(self._ends, row)
        above, folder, allow_webp = self._folders[place]
        begin = self._ends[place - 1] if place else 0
        return _Image(_item(above, folder, folder.images[row - begin]), allow_webp)

    def all(self) -> Iterator[_Image]:
        for above, folder, allow_webp in self._folders:
            for file in folder.images:
                yield _Image(_item(above, folder, file), allow_webp)


def _item(above: str, folder: Folder, file: File) -> Item:
    source = printable(os.path.join(above, *folder.parts, file.name))
    return Item(
        source=source,
        key="",
        label=0,
        wnid="",
        path=file.path,
        offset=file.offset,
        length=file.length,
    )
