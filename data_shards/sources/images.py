"""Find the images of a data set in its sources, each with its split, class and key."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.litter import count_litter
from data_shards.sources.archives import printable
from data_shards.sources.datasets import VAL, Dataset
from data_shards.sources.folders import OTHER_IMAGE_ENDINGS, Folder, Scanner, is_image
from data_shards.sources.labels import DEVKIT, KAGGLE, find_labels, load_labels
from data_shards.sources.layouts import Layout, Place
from data_shards.sources.naming import key_of

_VALIDATION: Final = "ILSVRC2012_val_"
_LABELS_UPWARDS: Final = 5  # Kaggle's file is that many folders above its validation images
_SHOWN: Final = 5
_UNKNOWN: Final = "unknown-class"
_LABELS_HINT: Final = "; --labels takes a table of their classes, a CSV with the columns name,wnid"


class Row(NamedTuple):
    """An image, before it becomes an :class:`~data_shards.sources.listing.Item`."""

    key: str
    source: str
    wnid: str
    path: str
    offset: int
    length: int
    flags: tuple[str, ...] = ()


@dataclass
class Found:
    """What a search found, by split.

    ``rows`` are the images, ``archives`` (name: md5) hold them, ``findings`` are the files that
    were not taken, ``outside`` are the wnids of other data sets, ``ignored`` other files,
    ``litter`` folders that are hidden or another program's, ``deeper`` the images that lie in
    folders below a class folder, ``entered`` the folder or archive of a split in the source.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    archives: dict[str, dict[str, str | None]] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    outside: dict[str, set[str]] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    litter: dict[str, list[str]] = field(default_factory=dict)
    deeper: dict[str, list[str]] = field(default_factory=dict)
    other_splits: set[str] = field(default_factory=set)
    entered: dict[str, str] = field(default_factory=dict)

    def warnings(self, split: str, dataset: Dataset) -> list[str]:
        """Return warnings about other synsets, files that are not images and odd folders."""
        lines = []
        homeless = [f for f in self.findings.get(split, []) if _UNKNOWN in f.reasons]
        if homeless:
            count = sum(finding.images for finding in homeless)
            lines.append(
                f"{count:,} images lie in no class folder, for example in {homeless[0].path}"
                + (_LABELS_HINT if dataset.can_train else "")
            )
        outside = self.outside.get(split)
        if outside:
            lines.append(f"synsets that are not in {dataset.name}: {len(outside):,}")
        ignored = self.ignored.get(split)
        if ignored:
            more = f" and {len(ignored) - _SHOWN} more" if len(ignored) > _SHOWN else ""
            shown = ", ".join(sorted(ignored)[:_SHOWN])
            lines.append(f"{len(ignored):,} files are not images by their names: {shown}{more}")
        litter = self.litter.get(split)
        if litter:
            lines.append(f"folders of other programs are not read: {count_litter(litter)}")
        deeper = self.deeper.get(split)
        if deeper:
            lines.append(
                f"{len(deeper):,} images lie in folders below a class folder and count as its "
                f"class: {min(deeper)}"
            )
        return lines


def find_images(
    dataset: Dataset,
    sources: Sequence[Path],
    split: str | None,
    *,
    labels: Path | None,
    md5: bool,
    progress: bool,
) -> Found:
    """Return the images of ``split`` as the source names it, or of all splits.

    UsageError if there are none, or if their split or form is ambiguous.
    """
    found = Found()
    readers = []
    for source in sources:
        prefix = (source.name,) if len(sources) > 1 and source.is_dir() else ()
        readers.append(_SourceReader(dataset, source, split, prefix, labels))
        readers[-1].read(md5=md5, progress=progress)
    splits = dataset.order({name for reader in readers for name in reader.splits})
    for reader in readers:
        reader.tell(found, next(iter(splits), ""))
    if not any(found.rows.values()):
        names = ", ".join(str(source) for source in sources)
        what = f"split {split} of {dataset.name}" if split else dataset.name
        raise UsageError(f"{names}: holds no image of {what}{_hint(found, dataset)}")
    for name, path in found.entered.items():
        if name not in found.rows and name not in found.findings:
            found.findings[name] = [Finding(path, "refused", ("no-images",), images=0)]
    return found


def _hint(found: Found, dataset: Dataset) -> str:
    unknown = [f for findings in found.findings.values() for f in findings][:1]
    if unknown:
        cure = _LABELS_HINT if _UNKNOWN in unknown[0].reasons and dataset.can_train else ""
        return f"; for example {unknown[0].path}: {', '.join(unknown[0].reasons)}{cure}"
    if found.other_splits:
        return f"; its names are of {', '.join(sorted(found.other_splits))}"
    if found.outside:
        return "; its folders are other synsets"
    return "; it should have folders or archives named by wnid, such as n01440764"


class _SourceReader:
    def __init__(
        self,
        dataset: Dataset,
        source: Path,
        split: str | None,
        prefix: tuple[str, ...],
        labels: Path | None,
    ) -> None:
        self._dataset = dataset
        self._source = source
        self._prefix = prefix
        self._layout = Layout(dataset, split, source)
        self._labels_file = labels
        self._labels: dict[str, str] | None = None
        self._rows: defaultdict[str | None, list[Row]] = defaultdict(list)
        self._findings: list[tuple[str | None, Finding]] = []
        self._archives: defaultdict[str | None, set[str]] = defaultdict(set)
        self._forms: defaultdict[str | None, set[bool]] = defaultdict(set)
        self._deeper: defaultdict[str | None, list[str]] = defaultdict(list)
        self._ignored: list[str] = []

    def read(self, *, md5: bool, progress: bool) -> None:
        """Walk through the source."""
        self._scanner = Scanner(self._layout.wanted, md5=md5, progress=progress)
        for folder in self._scanner.scan(self._source):
            self._take(folder)
        default = self._layout.default_split
        unnamed = self._rows.get(None)
        if unnamed and default is None:
            raise UsageError(
                f"{self._source}: does not say which split it is (for example "
                f"{unnamed[0].source}); give --split"
            )
        if unnamed and self._rows.get(default):
            raise UsageError(
                f"{self._source}: holds {default} images in a folder of that name and elsewhere "
                f"(for example {unnamed[0].source}); give the folder that is meant as --source"
            )
        self.splits = self._dataset.order({split or default or "" for split in self._rows})

    def tell(self, found: Found, first: str) -> None:
        """Add what was read to ``found``; ``first`` is the first split of all sources.

        A finding without a split goes to the first split in a fixed order.
        """
        scanner = self._scanner
        found.other_splits |= self._layout.other_splits
        rest = self._layout.default_split or next(iter(self.splits), first)
        for name, path in self._layout.entered.items():
            found.entered.setdefault(name, "/".join(map(printable, (*self._prefix, path))))
        for split, rows in self._rows.items():
            found.rows.setdefault(split or rest, []).extend(rows)
        for split, outside in self._layout.outside.items():
            found.outside.setdefault(split or rest, set()).update(outside)
        for finding in scanner.findings:
            split = self._split_of(finding.path)
            if self._layout.takes(split):
                self._findings.append((split, self._named(finding)))
        for split, finding in sorted(self._findings, key=lambda pair: pair[1].path):
            found.findings.setdefault(split or rest, []).append(finding)
        ignored = [*scanner.ignored, *self._ignored]
        for paths, kept in ((ignored, found.ignored), (scanner.litter, found.litter)):
            for path in paths:
                named = "/".join([*map(printable, self._prefix), path])
                kept.setdefault(self._split_of(path) or rest, []).append(named)
        for split, paths in self._deeper.items():
            found.deeper.setdefault(split or rest, []).extend(paths)
        for split, names in self._archives.items():
            digests = {name: scanner.archives[name] for name in sorted(names)}
            found.archives.setdefault(split or rest, {}).update(digests)
        self._check_forms(rest)

    def _check_forms(self, rest: str) -> None:
        forms: defaultdict[str, set[bool]] = defaultdict(set)
        for split, kinds in self._forms.items():
            forms[split or rest] |= kinds
        for split, kinds in forms.items():
            if len(kinds) == 2:
                raise UsageError(
                    f"{self._source}: holds {split} images twice, unpacked and in an archive; "
                    "give the one that is meant as --source"
                )

    def _split_of(self, path: str) -> str | None:
        return self._layout.place(tuple(path.split("/"))).split

    def _named(self, finding: Finding) -> Finding:
        path = "/".join([*map(printable, self._prefix), finding.path])
        return replace(finding, path=path)

    def _take(self, folder: Folder) -> None:
        place = self._layout.place(folder.parts)
        if not self._layout.takes(place.split):
            return
        split = self._with_corruption(folder, place)
        where = "/".join(map(printable, (*self._prefix, *folder.parts)))
        before = f"{where}/" if where else ""
        if place.known:
            self._refuse_names(split, before, folder.others)
            if folder.images and split != "":
                self._take_class(folder, split, place, before)
            return
        images = [name for name in folder.others if is_image(name, OTHER_IMAGE_ENDINGS)]
        self._ignored += [
            "/".join(map(printable, (*folder.parts, name)))
            for name in folder.others
            if name not in images
        ]
        if folder.images and self._take_flat(folder, place, before):
            self._refuse_names(split, before, images)
        elif folder.images or images:
            count = len(folder.images) + len(images)
            path = where or self._source.name
            finding = Finding(path, "refused", (_UNKNOWN,), images=count)
            self._findings.append((split or None, finding))

    def _refuse_names(self, split: str | None, before: str, names: Iterable[str]) -> None:
        self._findings += [
            (split, Finding(before + printable(name), "refused", ("extension",))) for name in names
        ]

    def _with_corruption(self, folder: Folder, place: Place) -> str | None:
        """Return the split; "" if the images cannot be taken because no corruption is named."""
        if self._dataset.corrupted and place.split is None and place.known:
            where = "/".join(map(printable, (*self._prefix, *folder.parts)))
            images = len(folder.images)
            finding = Finding(where, "refused", ("no-severity",), images=images)
            self._findings.append((None, finding))
            return ""
        return place.split

    def _take_class(self, folder: Folder, split: str | None, place: Place, before: str) -> None:
        self._note_form(folder, split)
        wnid = place.wnid
        rows = [
            Row(key_of(wnid, name), before + printable(name), wnid, path, offset, length)
            for name, path, offset, length in folder.images
        ]
        self._rows[split] += rows
        if place.deeper:
            self._deeper[split] += [row.source for row in rows]

    def _take_flat(self, folder: Folder, place: Place, before: str) -> bool:
        """Take images outside class folders by their labels; False if there are no labels."""
        if self._dataset.corrupted:
            return False
        validation = any(name.startswith(_VALIDATION) for name, *_ in folder.images)
        if not validation and self._labels_file is None:
            return False
        split = place.split or (VAL if validation else None)
        if not self._layout.takes(split):
            return True
        labels = self._load_labels()
        known = self._dataset.class_map.labels
        rows = []
        for name, path, offset, length in folder.images:
            wnid = labels.get(name.rpartition(".")[0])
            source = before + printable(name)
            if wnid is None:
                self._findings.append((split, Finding(source, "refused", ("no-label",))))
            elif wnid in known:
                rows.append(Row(key_of(wnid, name), source, wnid, path, offset, length))
            else:
                self._layout.outside.setdefault(split, set()).add(wnid)
        if rows:
            self._note_form(folder, split)
            self._rows[split] += rows
        return True

    def _note_form(self, folder: Folder, split: str | None) -> None:
        self._forms[split].add(bool(folder.archive))
        if folder.archive:
            self._archives[split].add(folder.archive)

    def _load_labels(self) -> dict[str, str]:
        if self._labels is None:
            path = self._labels_file or self._find_labels()
            if path is None:
                raise UsageError(
                    f"{self._source}: its validation images lie in no class folders; give "
                    f"--labels, the devkit {DEVKIT}.tar.gz or Kaggle's {KAGGLE}"
                )
            self._labels = load_labels(path)
        return self._labels

    def _find_labels(self) -> Path | None:
        real = Path(os.path.realpath(self._source))
        places = [real, *list(real.parents)[:_LABELS_UPWARDS]]
        return next((path for p in places if p.is_dir() and (path := find_labels(p))), None)
