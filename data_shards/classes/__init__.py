"""Class maps: one CSV for each data set, from source folder to label and class name.

The first line that is not a comment (``# …``) names the columns. ``wnid`` is the name of the
source's folder, a WordNet id for ImageNet. ``class`` is the class it counts as, by default the
wnid itself. ``label`` is the number of the class; by default classes are numbered as they first
appear.
"""

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UsageError

_LARGEST = 8 << 20  # bytes; the map of all 21,841 synsets of ImageNet has a tenth
_COLUMNS = ("wnid", "class", "label")


@dataclass(frozen=True)
class ClassMap:
    """``classes`` by label and the label of each wnid, in the order of the file."""

    classes: tuple[str, ...]
    labels: Mapping[str, int]


@functools.cache
def shipped_class_map(name: str) -> ClassMap:
    """Return the map ``name.csv`` of this package."""
    return load_class_map(Path(__file__).with_name(f"{name}.csv"))


def load_class_map(path: Path) -> ClassMap:
    """Read and check a class-map file; UsageError with one line if it is wrong."""
    names: dict[str, int] = {}  # class -> label
    labels: dict[str, int] = {}
    for line, row in _rows(path):
        wnid = row["wnid"]
        name = row.get("class") or wnid
        if "/" in wnid or wnid in ("", ".", "..") or not wnid.isprintable():
            raise UsageError(f"{path}:{line}: the wnid {wnid!r} is not a folder name")
        if not name.isprintable():
            raise UsageError(f"{path}:{line}: the class {name!r} is not printable")
        if wnid in labels:
            raise UsageError(f"{path}:{line}: the wnid {wnid!r} occurs twice")
        label = _label(row["label"], path, line) if "label" in row else len(names)
        if names.setdefault(name, label) != label and "label" in row:
            raise UsageError(
                f"{path}:{line}: the class {name!r} has the labels {names[name]} and {label}"
            )
        labels[wnid] = names[name]
    by_label = {label: name for name, label in names.items()}
    if len(by_label) < len(names):
        twice = next(name for name, label in names.items() if by_label[label] != name)
        raise UsageError(
            f"{path}: the classes {twice!r} and {by_label[names[twice]]!r} have the "
            f"same label {names[twice]}"
        )
    if sorted(by_label) != list(range(len(by_label))):
        missing = next(n for n in range(len(by_label)) if n not in by_label)
        raise UsageError(
            f"{path}: the labels must be 0 to {len(by_label) - 1}, but no class has "
            f"the label {missing}"
        )
    if not labels:
        raise UsageError(f"{path}: holds no class")
    return ClassMap(tuple(by_label[n] for n in range(len(by_label))), labels)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        # Check this first: opening a FIFO would block.
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: the class map cannot be read (it is no regular file)")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path}: the class map cannot be read ({error.strerror})") from None
    if len(content) > _LARGEST:
        raise UsageError(f"{path}: is larger than a class map can be ({_LARGEST} bytes)")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    header: list[str] | None = None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or _is_comment(line, header):
            continue
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise UsageError(f"{path}:{number}: is not CSV ({error})") from None
        if header is None:
            header = cells
            if "wnid" not in cells or len(set(cells)) < len(cells) or set(cells) - set(_COLUMNS):
                raise UsageError(
                    f"{path}:{number}: the columns must be wnid and optionally class and label, "
                    f"not {', '.join(cells)[:80]!r}"
                )
            continue
        if line.startswith("#"):
            raise UsageError(
                f"{path}:{number}: {cells[0][:40]!r} may be a comment or a folder; put a blank "
                f'behind the # of a comment, or quotes around the name of a folder: "#name"'
            )
        if len(cells) != len(header):
            raise UsageError(
                f"{path}:{number}: has {len(cells)} columns, but the header has {len(header)}"
            )
        rows.append((number, dict(zip(header, cells, strict=True))))
    return rows


def _is_comment(line: str, header: list[str] | None) -> bool:
    """Whether a line is a comment for sure: a row may begin with # too, if a folder does."""
    return line.startswith("#") and (
        header is None or line[1:2] in ("", " ", "\t", "#") or line.count(",") + 1 != len(header)
    )


def _label(text: str, path: Path, line: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise UsageError(f"{path}:{line}: the label {text!r} is not a whole number from 0")
    return int(text)
