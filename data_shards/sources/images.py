"""Find the images of a data set in its sources, each with its split, class and key."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.litter import count_litter
from data_shards.sources.archives import printable
from data_shards.sources.datasets import VAL, Dataset
from data_shards.sources.folders import Folder, Scanner
from data_shards.sources.labels import DEVKIT, KAGGLE, find_labels, load_labels
from data_shards.sources.layouts import Layout, Place
from data_shards.sources.naming import key_of

_VALIDATION: Final = "ILSVRC2012_val_"
_LABELS_UPWARDS: Final = 5  # Kaggle's file is that many folders above its validation images
_SHOWN: Final = 5


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
    folders below a class folder.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    archives: dict[str, dict[str, str | None]] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    outside: dict[str, set[str]] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    litter: dict[str, list[str]] = field(default_factory=dict)
    deeper: dict[str, list[str]] = field(default_factory=dict)
    other_splits: set[str] = field(default_factory=set)

    def warnings(self, split: str, dataset: str) -> list[str]:
        """Return warnings about other synsets, files that are not images and odd folders."""
        lines = []
        outside = self.outside.get(split)
        if outside:
            lines.append(f"synsets that are not in {dataset}: {len(outside):,}")
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
    for source in sources:
        prefix = (source.name,) if len(sources) > 1 and source.is_dir() else ()
        reader = _SourceReader(dataset, source, split, prefix, labels)
        reader.run(found, md5=md5, progress=progress)
    if not any(found.rows.values()):
        names = ", ".join(str(source) for source in sources)
        what = f"split {split} of {dataset.name}" if split else dataset.name
        raise UsageError(f"{names}: holds no image of {what}{_hint(found)}")
    return found


def _hint(found: Found) -> str:
    unknown = [f for findings in found.findings.values() for f in findings][:1]
    if unknown:
        return f"; for example {unknown[0].path}: {', '.join(unknown[0].reasons)}"
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

    def run(self, found: Found, *, md5: bool, progress: bool) -> None:
        scanner = Scanner(self._layout.wanted, md5=md5, progress=progress)
        for folder in scanner.scan(self._source):
            self._take(folder)
        found.other_splits |= self._layout.other_splits
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
        # A finding without a split goes to the first split in a fixed order.
        splits = self._dataset.order([split for split in self._rows if split is not None])
        rest = default or next(iter(splits), "")
        for split, rows in self._rows.items():
            found.rows.setdefault(split or rest, []).extend(rows)
        for split, outside in self._layout.outside.items():
            found.outside.setdefault(split or rest, set()).update(outside)
        for finding in scanner.findings:
            self._findings.append((self._split_of(finding.path), self._named(finding)))
        for split, finding in sorted(self._findings, key=lambda pair: pair[1].path):
            found.findings.setdefault(split or rest, []).append(finding)
        for paths, kept in ((scanner.ignored, found.ignored), (scanner.litter, found.litter)):
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
        return Finding(path, finding.verdict, finding.reasons)

    def _take(self, folder: Folder) -> None:
        place = self._layout.place(folder.parts)
        if not self._layout.takes(place.split):
            return
        split = self._with_corruption(folder, place)
        where = "/".join(map(printable, (*self._prefix, *folder.parts)))
        before = f"{where}/" if where else ""
        if place.known:
            self._findings += [
                (split, Finding(before + printable(name), "refused", ("extension",)))
                for name in folder.others
            ]
            if folder.images and split != "":
                self._take_class(folder, split, place, before)
        elif folder.images and not self._take_flat(folder, place, before):
            finding = Finding(where or self._source.name, "refused", ("unknown-class",))
            self._findings.append((split or None, finding))

    def _with_corruption(self, folder: Folder, place: Place) -> str | None:
        """Return the split; "" if the images cannot be taken because no corruption is named."""
        if self._dataset.corrupted and place.split is None and place.known:
            where = "/".join(map(printable, (*self._prefix, *folder.parts)))
            self._findings.append((None, Finding(where, "refused", ("no-severity",))))
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
