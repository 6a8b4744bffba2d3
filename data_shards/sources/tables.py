"""Read a table with a row for each image: CSV, TSV or Parquet. All cells are words."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data_shards.errors import UsageError
from data_shards.sources.folders import IMAGE_ENDINGS, OTHER_IMAGE_ENDINGS
from data_shards.sources.words import hint
from data_shards.system.files import read_regular

_SEPARATORS: Final = ",\t;"
# Names of columns that say what they hold, the likeliest first.
_PATHS: Final = (
    *("path", "filepath", "file_path", "image_path", "img_path", "filename", "file_name"),
    *("img_filename", "image_filename", "image_file", "file", "image", "img", "image_id", "name"),
)
_LABELS: Final = ("label", "labels", "class", "y", "target", "category")
_SPLITS: Final = ("split", "partition", "subset")
_IDS: Final = ("id", "img_id", "uid", "key")
_ATTRIBUTES: Final = frozenset(
    {
        *("bias", "attribute", "attr", "place", "background", "confounder"),
        *("group", "domain", "environment"),
    }
)


@dataclass(frozen=True)
class Table:
    """A table: the names of its ``columns`` and the ``cells`` of each row, as they are written.

    ``lines`` are where the rows are in the file.
    """

    path: Path
    columns: tuple[str, ...]
    cells: list[list[str]]
    lines: list[int]

    def place(self, row: int) -> str:
        """Return the file and the line of a row, for a message."""
        return f"{self.path}:{self.lines[row]}"

    def column(self, name: str, option: str) -> int:
        """Return the number of a column; UsageError, which names ``option``, if there is none."""
        if name not in self.columns:
            raise UsageError(
                f"{option}: {self.path} has no column {name!r}{hint(name, self.columns)}; "
                f"it has {', '.join(self.columns)}"
            )
        return self.columns.index(name)


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table that are used; None or () for those that it lacks."""

    path: str
    label: str | None = None
    split: str | None = None
    id: str | None = None
    attributes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Read a table by its ending: ``.parquet``, otherwise text with a line of column names.

    The columns are separated by commas, tabs or semicolons, whichever is most frequent in the
    first line. UsageError or DataShardsError in one line if it cannot be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such table")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8"
        ) from None
    first = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    cells, lines = [], []
    try:
        header = next(reader, [])
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise UsageError(
                    f"{path}:{reader.line_num}: has {len(row)} cells for {len(header)} columns; "
                    f"put quotes around a cell with {separator!r}"
                )
            cells.append([sys.intern(cell) for cell in row])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: is not CSV ({error})") from None
    return _checked(path, header, cells, lines)


def read_words(path: Path, columns: Sequence[str]) -> Table:
    """Read a text whose cells blanks separate, as CelebA's are.

    A first line with just the number of images is skipped. A line of column names may be there,
    without a name for the first column; if it is not, the columns are ``columns``.
    """
    try:
        text = read_regular(path).decode()
        # Interned, because a table of CelebA has eight million cells with two words.
        lines = [[sys.intern(word) for word in line.split()] for line in text.splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    begin = 1 if lines and len(lines[0]) == 1 and lines[0][0].isdigit() else 0
    names = list(columns)
    if len(lines) > begin + 1 and len(lines[begin]) == len(lines[begin + 1]) - 1:
        names = [columns[0], *lines[begin]]
        begin += 1
    cells = {number: row for number, row in enumerate(lines[begin:], begin + 1) if row}
    for number, row in cells.items():
        if len(row) != len(names):
            raise UsageError(
                f"{path}:{number}: has {len(row)} cells for {len(names)} columns; it may be cut off"
            )
    return _checked(path, names, list(cells.values()), list(cells))


def _read_parquet(path: Path) -> Table:
    # Other tables need neither, and pandas takes half a second.
    import pandas

    try:
        frame = pandas.read_parquet(io.BytesIO(read_regular(path)), engine="pyarrow")
    except ImportError:
        raise UsageError(
            f"{path}: Parquet needs pyarrow: pip install 'rebias-dist[parquet]', or save the "
            "table as CSV"
        ) from None
    except Exception as error:  # pyarrow raises many kinds of errors on damaged files
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: cannot be read as Parquet ({reason})") from None
    words = frame.astype(object).where(frame.notna(), "")
    cells = [[str(cell) for cell in row] for row in words.itertuples(index=False)]
    return _checked(path, [str(name) for name in frame.columns], cells, [*range(1, len(cells) + 1)])


def _checked(path: Path, header: list[str], cells: list[list[str]], lines: list[int]) -> Table:
    # The index that pandas writes has no name.
    columns = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: has two columns {twice!r}; rename one")
    if not cells:
        raise UsageError(f"{path}: has no rows below its column names")
    return Table(path, tuple(columns), cells, lines)


def choose_columns(
    table: Table, given: Mapping[str, str], attributes: Sequence[str] | None
) -> Columns:
    """Return the columns to use: those ``given`` by field, the others as their names suggest.

    "" means that the table has no such column. ``attributes`` is None if they are to be guessed
    too. A column whose first cell ends as the name of an image does is one of paths. UsageError
    if no column can have the paths.
    """
    free = [name for name in table.columns if name not in {*given.values(), *(attributes or ())}]

    def chosen(field: str, names: Sequence[str]) -> str | None:
        if field in given:
            return given[field] or None
        by_name = {name.casefold(): name for name in reversed(free)}
        found = next((by_name[name] for name in names if name in by_name), None)
        if found is not None:
            free.remove(found)
        return found

    path = chosen("path", _PATHS) or _column_of_images(table)
    if path is None:
        raise UsageError(
            f"{table.path}: no column looks like paths of images; name it with --path-column; "
            f"it has {', '.join(table.columns)}"
        )
    label, split = chosen("label", _LABELS), chosen("split", _SPLITS)
    identity = chosen("id", _IDS)
    if attributes is None:
        attributes = [name for name in free if name.casefold() in _ATTRIBUTES]
    return Columns(path, label, split, identity, tuple(attributes))


def _column_of_images(table: Table) -> str | None:
    images = IMAGE_ENDINGS | OTHER_IMAGE_ENDINGS
    for name, cell in zip(table.columns, table.cells[0], strict=True):
        if cell.strip().rpartition(".")[2].lower() in images:
            return name
    return None
