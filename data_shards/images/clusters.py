"""Texture clusters of a split: ``clusters.csv`` beside its shards, joined by key.

The columns are ``key`` and one for each clustering, ``cluster1`` …, with values from 0. A
sample without a row belongs to no cluster.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import Manifest
from data_shards.format.samples import Facts, walk_facts
from data_shards.system.files import read_regular, write_synced

CLUSTERS_NAME = "clusters.csv"
NO_CLUSTER = -1

_MOST_CLUSTERS = 10_000  # bounds the table that a hostile number asks for


@dataclass(frozen=True)
class Published:
    """A row of a published list: an image's path, its class's name and its clusters."""

    path: PurePosixPath
    category: str
    clusters: tuple[int, ...]


@dataclass(frozen=True)
class Join:
    """The result of an import: clusters by key, samples without a row, rows without a sample."""

    clusters: Mapping[str, tuple[int, ...]]
    samples_left: Sequence[str]
    rows_left: Sequence[str]


def write_clusters(folder: Path, clusters: Mapping[str, Sequence[int]]) -> None:
    """Write ``folder/clusters.csv`` whole or not at all, in the order of the mapping.

    UsageError if it exists with another content, because it is never overwritten.
    """
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["key", *_columns(len(next(iter(clusters.values()))))])
    table.writerows([key, *row] for key, row in clusters.items())
    content = stream.getvalue().encode()
    path = folder / CLUSTERS_NAME
    if path.exists():
        if read_regular(path) == content:
            return
        raise exists(folder)
    write_synced(path, content)


def _columns(number: int) -> list[str]:
    return [f"cluster{n + 1}" for n in range(number)]


def exists(folder: Path) -> UsageError:
    """Return the error that ``folder`` already has clusters."""
    return UsageError(f"{folder / CLUSTERS_NAME}: is there already; remove it to write a new one")


def read_clusters(folder: Path, index: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the clusters of each sample of a split, int64 [clusterings, n]; -1: none.

    ``index`` is that of the split. DataShardsError if the file is missing or malformed, or
    if a key occurs twice or is not in the split.
    """
    path = folder / CLUSTERS_NAME
    rows = _read(path)
    header = next(rows)
    number = len(header) - 1
    if number < 1 or header != ["key", *_columns(number)]:
        raise DataShardsError(f"{path}: malformed: the columns are not key, cluster1 …")
    position = {key.decode(errors="replace"): row for row, key in enumerate(index["key"].tolist())}
    clusters = np.full((number, len(index)), NO_CLUSTER, dtype=np.int64)
    for line, row in enumerate(rows, 2):
        place = position.pop(row[0], None) if row else None
        if place is None:
            raise DataShardsError(f"{path}:{line}: {row[:1]} is no key of the split, or is twice")
        clusters[:, place] = _numbers(f"{path}:{line}", row[1:], number)
    return clusters


def read_published(path: Path) -> list[Published]:
    """Read a list with the columns ``path``, ``category``, ``cluster1`` …

    DataShardsError if it is malformed, UsageError if it cannot be read or is empty.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file of clusters")
    rows = _read(path)
    header = next(rows)
    number = len(header) - 2
    if number < 1 or header != ["path", "category", *_columns(number)]:
        raise DataShardsError(f"{path}: malformed: the columns are not path, category, cluster1 …")
    found = []
    for line, row in enumerate(rows, 2):
        if len(row) < 2 or not PurePosixPath(row[0]).name:
            raise DataShardsError(f"{path}:{line}: malformed")
        numbers = _numbers(f"{path}:{line}", row[2:], number)
        found.append(Published(PurePosixPath(row[0]), row[1], numbers))
    if not found:
        raise UsageError(f"{path}: has no row")
    return found


def import_published(
    folder: Path, manifest: Manifest, index: NDArray[np.void], rows: Sequence[Published]
) -> Join:
    """Join published clusters to the samples of a split by path or by the name of the file.

    A sample's own path in its source comes first. Otherwise the folder before the name must be
    the sample's class or its folder in the source, or be left out; else the row is another image.
    DataShardsError if names stay ambiguous, or a row's category names another
    class than the sample's.
    """
    samples: dict[str, list[tuple[Facts, int]]] = {}
    for facts, label in zip(walk_facts(folder, manifest, index), index["label"], strict=True):
        samples.setdefault(PurePosixPath(facts.source).name, []).append((facts, int(label)))
    clusters: dict[str, tuple[int, ...]] = {}
    rows_left = []
    for row in rows:
        named = samples.get(row.path.name, [])
        fitting = [found for found in named if found[0].source == str(row.path)]
        fitting = fitting or [found for found in named if _fits(row.path, found[0])]
        if not fitting:
            rows_left.append(str(row.path))
            continue
        facts, label = fitting[0]
        if len(fitting) > 1:
            raise DataShardsError(
                f"{row.path}: ambiguous: may be {facts.source} or {fitting[1][0].source}"
            )
        if facts.key in clusters:
            raise DataShardsError(f"{row.path}: ambiguous: two rows fit the sample {facts.source}")
        name = manifest.classes[label]
        if row.category != name and row.category in manifest.classes:
            raise DataShardsError(
                f"{row.path}: is of the category {row.category}, but the sample {facts.source} "
                f"of the class {name}"
            )
        clusters[facts.key] = row.clusters
    # Use the order of the shards, not of the list.
    keys = [key.decode() for key in index["key"].tolist()]
    return Join(
        clusters={key: clusters[key] for key in keys if key in clusters},
        samples_left=[key for key in keys if key not in clusters],
        rows_left=rows_left,
    )


def _fits(path: PurePosixPath, facts: Facts) -> bool:
    """Whether the folder of a published path agrees with what is known of a sample."""
    folder = PurePosixPath(facts.source).parent.name
    if path.parent.name in ("", facts.wnid, folder):
        return True
    # An archive is not a class folder, so it says nothing about the class.
    return not facts.wnid and (not folder or folder.endswith(".tar"))


def _numbers(where: str, cells: list[str], number: int) -> tuple[int, ...]:
    known = all(cell.isascii() and cell.isdigit() and len(cell) < 9 for cell in cells)
    if len(cells) != number or not known:
        raise DataShardsError(f"{where}: malformed: {number} cluster numbers were expected")
    values = tuple(int(cell) for cell in cells)
    if max(values) >= _MOST_CLUSTERS:
        raise DataShardsError(f"{where}: cluster {max(values)} is not below {_MOST_CLUSTERS}")
    return values


def _read(path: Path) -> Iterator[list[str]]:
    """Yield the header, an empty list if there is none, and the rows."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataShardsError(f"{path}: malformed: is not UTF-8 text") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        yield next(rows, [])
        yield from rows
    except csv.Error as error:
        raise DataShardsError(f"{path}:{rows.line_num}: malformed: {error}") from None
