"""List images whose class, split and bias attributes are words, from a table or from names.

All splits share the classes and the values of the attributes, so that their numbers mean the
same everywhere. Every doubt is an error in one line before anything is written.
"""

import functools
import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.errors import UsageError
from data_shards.findings import Finding
from data_shards.format.manifest import Option
from data_shards.sources.archives import printable
from data_shards.sources.datasets import SELECTION, TEST, TRAIN, VAL
from data_shards.sources.folders import IMAGE_ENDINGS, OTHER_IMAGE_ENDINGS, File, Scanner
from data_shards.sources.listing import Item, Listing, listing_digest
from data_shards.sources.naming import safe_key, selection_keys, unique_keys
from data_shards.sources.oddities import unused_words, with_warnings
from data_shards.sources.tables import Columns, Table
from data_shards.sources.words import hint, numbered, split_names

_ORDER: Final = (TRAIN, SELECTION, VAL, TEST)
_NEAR: Final = 5000  # names of a folder that are compared with one that is missing


class Row(NamedTuple):
    """An image as a table or its name describes it; "" for what is not known.

    ``where`` is the line of the table, for messages; ``values`` are those of the attributes.
    """

    where: str
    path: str
    label: str
    split: str
    values: tuple[str, ...]
    key: str = ""


@dataclass(frozen=True)
class HoldOut:
    """Splits to be taken from train: the ``parts`` of all training images by split.

    The choice is stratified by class; ``seed`` and the paths decide it.
    """

    parts: Mapping[str, float]
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """Images of a data set, which :func:`labelled_listings` lists.

    ``classes`` and ``values`` (by attribute) give the order of the words, or names for numbers;
    without them, numbers are in their order and words are sorted. ``splits`` names the splits by
    the words of the rows; if it is empty, the words are the names. ``expected`` are the published
    numbers of images by split. ``hold_out`` makes splits that the rows do not have.
    """

    dataset: str
    rows: Sequence[Row]
    attributes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    hold_out: HoldOut | None = None


@dataclass(frozen=True)
class Images:
    """The images below ``folder`` by their paths, and the ``findings`` on what was refused."""

    folder: Path
    files: Mapping[str, File]
    findings: tuple[Finding, ...]


def scan_images(folder: Path, wanted: Collection[str] | None, *, progress: bool) -> Images:
    """List the images below ``folder``, or only those in the folders ``wanted`` (paths).

    Images of every format are listed; the pipeline refuses those that it does not take.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder of images")
    scanner = Scanner(
        lambda parts: wanted is None or "/".join(parts) in wanted,
        md5=False,
        progress=progress,
        endings=IMAGE_ENDINGS | OTHER_IMAGE_ENDINGS,
    )
    files = {
        "/".join((*found.parts, file.name)): file
        for found in scanner.scan(folder)
        for file in found.images
    }
    return Images(folder, files, tuple(scanner.findings))


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return all folders on the way to relative paths."""
    folders: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        folders.update("/".join(parts[: count + 1]) for count in range(len(parts)))
    return folders


def relative_path(path: str, folder: Path, where: str) -> str:
    """Return ``path`` relative to ``folder``; UsageError if it is empty or leads out of it.

    Backslashes are taken as slashes.
    """
    text = path.strip().replace("\\", "/")
    if not text:
        raise UsageError(f"{where}: the path is empty; fill the cell or remove the row")
    found = posixpath.normpath(text)
    if found.startswith("/"):
        above, name = posixpath.split(found)
        # The folder may be a link; a file that is one keeps its name.
        found = os.path.join(os.path.relpath(_real(above), _real(folder)), name)
        found = posixpath.normpath(found)
    if found == ".." or found.startswith("../"):
        raise UsageError(
            f"{where}: the path {path!r} leads out of {folder}; give --images, the folder that "
            "holds all images"
        )
    return found


def rows_of(table: Table, columns: Columns, folder: Path) -> list[Row]:
    """Return the rows of a table whose paths are relative to ``folder``.

    Without a column of labels, the folder of an image is its class; without one of splits, all
    are training images. UsageError for a path that does not fit.
    """
    path = table.columns.index(columns.path)
    label, split, key = (
        None if name is None else table.columns.index(name)
        for name in (columns.label, columns.split, columns.id)
    )
    attributes = [table.columns.index(name) for name in columns.attributes]
    rows = []
    for number, cells in enumerate(table.cells):
        where = table.place(number)
        found = relative_path(cells[path], folder, where)
        above = posixpath.basename(posixpath.dirname(found))
        if label is None and not above:
            raise UsageError(
                f"{where}: {found!r} is in no class folder; name the column of the classes with "
                "--label-column"
            )
        rows.append(
            Row(
                where,
                found,
                above if label is None else cells[label],
                TRAIN if split is None else cells[split],
                tuple(cells[place] for place in attributes),
                "" if key is None else cells[key].strip(),
            )
        )
    return rows


@functools.cache
def _real(folder: str | Path) -> str:
    return os.path.realpath(folder)


def labelled_listings(data: Labelled, images: Images, *, skip_missing: bool) -> list[Listing]:
    """Return a listing of each split, in the order train, selection, val, test, others.

    The paths of the rows are relative to the folder of ``images``. A row without a file is a
    UsageError, or is left out and told with ``skip_missing``. UsageError in one line for every
    other doubt: two rows for one path, two spellings of a word, a cell without a word.
    """
    _check_paths(data.rows)
    present = [row for row in data.rows if row.path in images.files]
    if len(present) < len(data.rows) and not (skip_missing and present):
        raise _missing(data.rows, images)
    classes, labels = numbered(
        "label", [(row.where, row.label) for row in data.rows], data.classes, "--classes"
    )
    vocabularies: dict[str, tuple[str, ...]] = {}
    columns = []
    for place, name in enumerate(data.attributes):
        cells = [(row.where, row.values[place]) for row in data.rows]
        order = data.values.get(name, ())
        vocabularies[name], ids = numbered(name, cells, order, "--values", blank=True)
        columns.append([ids[row.values[place]] for row in present])
    attributes = list(zip(*columns, strict=True)) if columns else [()] * len(present)
    members: defaultdict[str, list[int]] = defaultdict(list)
    names = split_names([(row.where, row.split) for row in data.rows], data.splits)
    splits = [names[row.split] for row in present]
    if data.hold_out is not None:
        splits = _with_held_out(data.hold_out, present, splits)
    for number, split in enumerate(splits):
        members[split].append(number)
    listings = []
    for split in sorted(members, key=lambda name: (_rank(name), name)):
        chosen = [present[number] for number in members[split]]
        items = _items(
            chosen,
            [labels[row.label] for row in chosen],
            [attributes[number] for number in members[split]],
            images,
        )
        listings.append(
            Listing(
                dataset=data.dataset,
                split=split,
                classes=classes,
                items=items,
                facts={**_facts(data), "listing_sha256": listing_digest(items)},
                warnings=tuple(_expected_warning(data, split, len(items))),
                attributes=vocabularies,
            )
        )
    unused = unused_words(data.splits, names)
    return with_warnings(listings, len(data.rows) - len(present), unused)


def _with_held_out(hold_out: HoldOut, rows: Sequence[Row], splits: Sequence[str]) -> list[str]:
    """Return the split of each row; a part of the training images is in others."""
    result = list(splits)
    rest = 1.0
    for split, part in hold_out.parts.items():
        if split in splits:
            raise UsageError(f"--hold-out {split}={part}: there is such a split already")
        if not 0 < part < rest:
            raise UsageError(f"--hold-out {split}={part}: parts must be above 0, together below 1")
        train = [number for number, name in enumerate(result) if name == TRAIN]
        if not train:
            raise UsageError(
                f"--hold-out {split}={part}: the split train, which it takes from, has 0 images; "
                f"there are {', '.join(sorted(set(splits)))}: name one of them train (--splits "
                "does it for a table), or leave --hold-out out"
            )
        keys = [(rows[number].label, rows[number].path) for number in train]
        chosen = selection_keys(keys, part / rest, hold_out.seed)
        if not chosen:
            raise UsageError(
                f"--hold-out {split}={part}: is less than one image of each class, so it takes "
                f"none of the {len(train):,} training images; give a larger part"
            )
        if len(chosen) == len(train):
            raise UsageError(
                f"--hold-out {split}={part}: takes all {len(train):,} training images that are "
                "left; give a smaller part"
            )
        for number, key in zip(train, keys, strict=True):
            if key in chosen:
                result[number] = split
        rest -= part
    return result


def _facts(data: Labelled) -> dict[str, Option]:
    if data.hold_out is None:
        return {}
    parts = [f"{split}={part}" for split, part in data.hold_out.parts.items()]
    return {"hold_out": parts, "hold_out_seed": data.hold_out.seed}


def _rank(split: str) -> int:
    return _ORDER.index(split) if split in _ORDER else len(_ORDER)


def _check_paths(rows: Sequence[Row]) -> None:
    other = "; name another column with --id-column, or none with --id-column ''"
    for what, cells, cure in (
        ("path", [row.path for row in rows], "; remove one of the rows"),
        ("id", [row.key for row in rows], other),
    ):
        first: dict[str, str] = {}
        for row, cell in zip(rows, cells, strict=True):
            if cell and first.setdefault(cell, row.where) != row.where:
                raise UsageError(
                    f"{row.where}: the {what} {cell!r} is also that of {first[cell]}{cure}"
                )


def _missing(rows: Sequence[Row], images: Images) -> UsageError:
    """Return the error for the first row without a file, with the nearest name that exists."""
    missing = [row for row in rows if row.path not in images.files]
    row = missing[0]
    for finding in images.findings:
        if printable(row.path) == finding.path:
            return UsageError(f"{row.where}: {row.path!r} is refused: {finding.reasons[0]}")
    folder, _, name = row.path.rpartition("/")
    near = hint(row.path, [p for p in images.files if p.rpartition("/")[2] == name][:_NEAR])
    if not near:
        beside = (p for p in images.files if p.rpartition("/")[0] == folder)
        near = hint(row.path, [path for path, _ in zip(beside, range(_NEAR), strict=False)])
    if os.path.isfile(images.folder / row.path):
        near = ", which is hidden or no image by its name"
    many = f" ({len(missing):,} of {len(rows):,} rows have no file)" if len(missing) > 1 else ""
    return UsageError(
        f"{row.where}: there is no image {row.path!r} in {images.folder}{near}{many}; mend the "
        "path, give the folder with --images, or leave such rows out with --skip-missing"
    )


def _items(
    rows: Sequence[Row],
    labels: Sequence[int],
    attributes: Sequence[tuple[int, ...]],
    images: Images,
) -> tuple[Item, ...]:
    table = []
    for row, label, values in zip(rows, labels, attributes, strict=True):
        stem = posixpath.splitext(row.path)[0].replace("/", "_")
        table.append((safe_key(row.key or stem), row.path, label, values))
    table.sort()
    keys = unique_keys([key for key, *_ in table], [path for _, path, *_ in table])
    items = []
    for key, (_, path, label, values) in zip(keys, table, strict=True):
        file = images.files[path]
        items.append(
            Item(
                printable(path),
                key,
                label,
                "",
                file.path,
                file.offset,
                file.length,
                attributes=values,
            )
        )
    return tuple(items)


def _expected_warning(data: Labelled, split: str, count: int) -> list[str]:
    expected = data.expected.get(split, count)
    if expected == count:
        return []
    return [f"{data.dataset} {split}: {count:,} images, but {expected:,} are published"]
