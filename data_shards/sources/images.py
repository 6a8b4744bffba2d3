"""Find the images of a data set in its sources, each with its split, class and key."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from posixpath import splitext
from typing import Final

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.sources.archives import packed_name, printable
from data_shards.sources.datasets import SELECTION, TEST, TRAIN, VAL, Dataset
from data_shards.sources.folders import OTHER_IMAGE_ENDINGS, File, Folder, Scanner, is_image
from data_shards.sources.found import UNKNOWN, Found, Row
from data_shards.sources.labels import DEVKIT, KAGGLE, Labels, find_labels, load_labels
from data_shards.sources.layouts import Layout, Place
from data_shards.sources.naming import class_in, key_of, safe_key

_VALIDATION: Final = "ILSVRC2012_val_"
_TEST: Final = "ILSVRC2012_test_"
_SHOWN: Final = 5  # names in a message
_LABELS_UPWARDS: Final = 5  # Kaggle's file is that many folders above its validation images


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
    given = load_labels(labels) if labels is not None else None
    for source in sources:
        prefix = (source.name,) if len(sources) > 1 and source.is_dir() else ()
        readers.append(_SourceReader(dataset, source, split, prefix, given))
        readers[-1].read(md5=md5, progress=progress)
    splits = dataset.order({name for reader in readers for name in reader.splits})
    first = next(iter(splits), "")
    for reader in readers:
        reader.tell(found, first)
    if split is None and found.other_splits:
        others = ", ".join(sorted(found.other_splits))
        told = f"{dataset.name} has no split {others}, so its folders and archives are not read"
        found.told.setdefault(first, []).append(told)
    found.miss_packed(dataset)
    if given is not None:
        unlisted = [reader.unlisted for reader in readers if reader.by_table]
        found.compare_with(dataset, given, first or split or "", unlisted)
    if not any(found.rows.values()):
        names = ", ".join(str(source) for source in sources)
        what = f"split {split} of {dataset.name}" if split else dataset.name
        raise UsageError(f"{names}: holds no image of {what}{found.hint(dataset)}")
    empty = [s.name for s, r in zip(sources, readers, strict=True) if r.is_empty]
    found.miss_empty(empty, first)
    return found


class _SourceReader:
    def __init__(
        self,
        dataset: Dataset,
        source: Path,
        split: str | None,
        prefix: tuple[str, ...],
        labels: Labels | None,
    ) -> None:
        self._dataset = dataset
        self._source = source
        self._prefix = prefix
        self._layout = Layout(dataset, split, source)
        self._given = labels
        self._found: Labels | None = None
        # If no folder says which images belong to the wanted split, a table of labels does.
        self.by_table = (
            labels is not None
            and labels.is_table
            and split is not None
            and self._layout.source_split is None
        )
        self.unlisted = 0
        self._rows: defaultdict[str | None, list[Row]] = defaultdict(list)
        self._findings: list[tuple[str | None, Finding]] = []
        self._refused: defaultdict[str | None, list[Row]] = defaultdict(list)
        self._archives: defaultdict[str | None, set[str]] = defaultdict(set)
        self._forms: defaultdict[str | None, set[bool]] = defaultdict(set)
        self._deeper: defaultdict[str | None, list[str]] = defaultdict(list)
        self._ignored: list[str] = []
        # The folders of class folders of which no name says the split: are they in an archive?
        self._above: dict[str, bool] = {}

    def read(self, *, md5: bool, progress: bool) -> None:
        """Walk through the source."""
        self._scanner = Scanner(
            self._layout.wanted, md5=md5, progress=progress, endings=self._dataset.endings
        )
        for folder in self._scanner.scan(self._source):
            self._take(folder)
        default = self._layout.default_split
        if self._rows.get(None):
            self._check_unnamed(self._rows[None][0].source, default)
        self.splits = self._dataset.order({split or default or "" for split in self._rows})

    def _check_unnamed(self, example: str, default: str | None) -> None:
        """Raise UsageError unless the images without a named split are clearly of ``default``."""
        if default is not None and self._rows.get(default):
            raise UsageError(
                f"{self._source}: holds {default} images in a folder of that name and elsewhere "
                f"(for example {example}); give the folder that is meant as --source"
            )
        # Without a wanted split, a table of labels will say which images belong to it.
        by_table = default is None and self._given is not None and self._given.is_table
        folders = set(self._above) - {str(self._source)}
        others = default is None and len(self._rows) > 1
        several = len(self._above) > 1 and not self._layout.names_split
        if folders and (several or others) and not by_table:
            raise UsageError(self._unclear(default))
        if default is None:
            raise UsageError(
                f"{self._source}: does not say which split it is (for example {example}); "
                "give --split"
            )

    def _unclear(self, default: str | None) -> str:
        """Return the message that the class folders may be of different splits."""
        paths = sorted(self._above)
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        shown = ", ".join(map(printable, paths[:_SHOWN])) + more
        known = ", ".join(self._dataset.splits or (TRAIN, SELECTION, VAL, TEST))
        one = len(paths) == 1
        cure = f"give {'it' if one else 'those that are meant'} as --source"
        if default is None:
            cure += " with --split"
        if str(self._source) in self._above:
            cure = f"move those that are not meant out of {self._source}"
        elif any(self._above.values()):
            cure = f"unpack the archive and {cure}"
        else:
            cure += f", or name {'it' if one else 'each'} after its split ({known})"
        return f"{self._source}: no name says the split of the class folders in {shown}; {cure}"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of this data set, wanted or not."""
        layout = self._layout
        seen = (self._rows, self._findings, layout.other_splits, layout.outside, layout.skipped)
        return not any(seen)

    def tell(self, found: Found, first: str) -> None:
        """Add what was read to ``found``; ``first`` is the first split of all sources.

        A finding without a split goes to the first split in a fixed order.
        """
        scanner = self._scanner
        rest = self._layout.default_split or next(iter(self.splits), first)
        for name, path in self._layout.entered.items():
            found.entered.setdefault(name, "/".join(map(printable, (*self._prefix, path))))
        for split, rows in self._rows.items():
            found.rows.setdefault(split or rest, []).extend(rows)
        for split, rows in self._refused.items():
            found.refused.setdefault(split or rest, []).extend(rows)
        for split, outside in self._layout.outside.items():
            found.outside.setdefault(split or rest, set()).update(outside)
        for finding in scanner.findings:
            split = self._split_of(finding.path)
            if self._layout.takes(split):
                self._findings.append((split, self._named(finding)))
        found.other_splits |= self._layout.other_splits
        for split, finding in sorted(self._findings, key=lambda pair: pair[1].path):
            found.findings.setdefault(split or rest, []).append(finding)
        ignored = [*scanner.ignored, *self._ignored]
        for paths, kept in ((ignored, found.ignored), (scanner.litter, found.litter)):
            for path in paths:
                named = "/".join([*map(printable, self._prefix), path])
                kept.setdefault(self._split_of(path) or rest, []).append(named)
        for path in ignored:
            folder, _, name = path.rpartition("/")
            name = packed_name(name)
            split = self._split_of(f"{folder}/{name}.tar".lstrip("/"))
            if name and self._layout.means_images(name) and self._layout.takes(split):
                named = "/".join([*map(printable, self._prefix), path])
                found.packed.append((split or rest, name, named))
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
        if self.by_table and place.split is None:
            self._take_listed(folder, before)
            return
        if place.known:
            self._refuse_names(split, before, folder.other_files)
            if folder.images and split != "":
                self._take_class(folder, split, place, before)
            return
        images = [f for f in folder.other_files if is_image(f.name, OTHER_IMAGE_ENDINGS)]
        self._ignored += [
            "/".join(map(printable, (*folder.parts, file.name)))
            for file in folder.other_files
            if file not in images
        ]
        if folder.images and self._take_flat(folder, place, before):
            self._refuse_names(split, before, images)
        elif folder.images or images:
            count = len(folder.images) + len(images)
            path = where or self._source.name
            finding = Finding(path, "refused", (UNKNOWN,), images=count)
            self._findings.append((split or None, finding))
            self._keep_refused(split, before, [*folder.images, *images])

    def _refuse_names(self, split: str | None, before: str, files: Sequence[File]) -> None:
        self._findings += [
            (split, Finding(before + printable(file.name), "refused", ("extension",)))
            for file in files
        ]
        self._keep_refused(split, before, files)

    def _keep_refused(self, split: str | None, before: str, files: Iterable[File]) -> None:
        """Keep where files lie that a finding refuses, by themselves or with their folder."""
        for name, path, offset, length in files:
            source = before + printable(name)
            key = safe_key(splitext(source)[0].replace("/", "_"))
            self._refused[split].append(Row(key, source, "", path, offset, length))

    def _with_corruption(self, folder: Folder, place: Place) -> str | None:
        """Return the split; "" if the images cannot be taken because no corruption is named."""
        if self._dataset.corrupted and place.split is None and place.known:
            where = "/".join(map(printable, (*self._prefix, *folder.parts)))
            images = len(folder.images)
            finding = Finding(where, "refused", ("no-severity",), images=images)
            self._findings.append((None, finding))
            self._keep_refused(None, f"{where}/" if where else "", folder.images)
            return ""
        return place.split

    def _take_class(self, folder: Folder, split: str | None, place: Place, before: str) -> None:
        self._note_form(folder, split)
        if split is None:
            above = self._layout.above(folder.parts)
            root = self._source if self._source.is_dir() else self._source.parent
            self._above[str(root.joinpath(*above))] = folder.archive in above[:-1]
        wnid = place.wnid
        rows = [
            Row(key_of(wnid, name), before + printable(name), wnid, path, offset, length)
            for name, path, offset, length in folder.images
        ]
        self._rows[split] += rows
        if place.deeper:
            self._deeper[split] += [row.source for row in rows]

    def _take_listed(self, folder: Folder, before: str) -> None:
        """Take the images that the given table lists; the others belong to other splits."""
        assert self._given is not None
        for file in folder.images:
            wnid = self._given.find(self._source, folder.parts, _stem(file.name))
            if wnid is None:
                self.unlisted += 1
            else:
                self._take_file(folder, file, None, wnid, before)

    def _take_flat(self, folder: Folder, place: Place, before: str) -> bool:
        """Take images outside class folders by names or labels; False if there are neither."""
        if self._dataset.corrupted:
            return False
        if self._given is None and not any(_says_split(file.name) for file in folder.images):
            return False
        for file in folder.images:
            split = place.split or _says_split(file.name)
            if not self._layout.takes(split):
                continue
            wnid = self._class_of(folder, file)
            if wnid:
                self._take_file(folder, file, split, wnid, before)
            else:
                source = before + printable(file.name)
                self._findings.append((split, Finding(source, "refused", ("no-label",))))
                self._keep_refused(split, before, [file])
        return True

    def _class_of(self, folder: Folder, file: File) -> str | None:
        stem = _stem(file.name)
        if self._given is not None:
            wnid = self._given.find(self._source, folder.parts, stem)
            return wnid or class_in(stem)
        if file.name.startswith(_VALIDATION):
            return class_in(stem) or self._found_labels().wnids.get(stem)
        return class_in(stem)

    def _take_file(
        self, folder: Folder, file: File, split: str | None, wnid: str, before: str
    ) -> None:
        if wnid not in self._dataset.class_map.labels:
            self._layout.outside.setdefault(split, set()).add(wnid)
            return
        self._note_form(folder, split)
        name, path, offset, length = file
        source = before + printable(name)
        self._rows[split].append(Row(key_of(wnid, name), source, wnid, path, offset, length))

    def _note_form(self, folder: Folder, split: str | None) -> None:
        self._forms[split].add(bool(folder.archive))
        if folder.archive:
            self._archives[split].add(folder.archive)

    def _found_labels(self) -> Labels:
        """Return the labels that lie beside the source."""
        if self._found is None:
            real = Path(os.path.realpath(self._source))
            places = [real, *list(real.parents)[:_LABELS_UPWARDS]]
            path = next((path for p in places if p.is_dir() and (path := find_labels(p))), None)
            if path is None:
                raise UsageError(
                    f"{self._source}: its validation images lie in no class folders; give "
                    f"--labels, the devkit {DEVKIT}.tar.gz or Kaggle's {KAGGLE}"
                )
            self._found = load_labels(path)
        return self._found


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _says_split(name: str) -> str | None:
    """Return the split that the published name of an image says, None if it says none."""
    if name.startswith((_VALIDATION, _TEST)):
        return VAL if name.startswith(_VALIDATION) else TEST
    return TRAIN if class_in(_stem(name)) else None
