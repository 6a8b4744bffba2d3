"""The options of ``convert table``: which columns of a table hold what."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import UsageError
from data_shards.sources.datasets import check_name
from data_shards.sources.labelled import (
    Labelled,
    folders_of,
    labelled_listings,
    rows_of,
    scan_images,
)
from data_shards.sources.listing import Listing
from data_shards.sources.tables import Columns, Table, choose_columns, read_table
from data_shards.sources.words import hint

SUMMARY = "images with bias labels, from a table (CSV, TSV, Parquet) with a row for each"
EXAMPLE = (
    "python -m data_shards convert table birds.csv --attributes place "
    "--splits 0=train,1=selection,2=test --output shards/birds"
)

_LONGEST = 64  # signs of the name of an attribute
_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`listings_from` reads, except ``--output`` and ``--json``."""
    parser.add_argument("table", type=Path, metavar="TABLE")
    parser.add_argument("--name", help="name of the data set (default: that of --output)")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the folder that the paths begin in (default: that of the table)",
    )
    parser.add_argument("--path-column", metavar="NAME", help="paths of the images")
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="classes; without such a column, the folder of an image is its class",
    )
    parser.add_argument(
        "--attributes",
        metavar="NAMES",
        help="columns of bias attributes, such as place,sex; the first is the bias by default",
    )
    parser.add_argument(
        "--split-column",
        metavar="NAME",
        help="splits; without such a column, all images are training data",
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="names of the samples (default: from the paths)"
    )
    parser.add_argument(
        "--splits",
        metavar="WORDS",
        help="names for the words of the split column, such as 0=train,1=selection,2=test; "
        "selection chooses the best checkpoint",
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="all classes by label, such as landbird,waterbird; they name the numbers 0, 1, … of "
        "the label column too (default: words by name, numbers in their order)",
    )
    parser.add_argument(
        "--values",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="all values of an attribute by id, such as place=land,water, as --classes; once for "
        "each attribute",
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out rows without a file, such as for a part of a data set",
    )


def listings_from(arguments: argparse.Namespace) -> list[Listing]:
    """Return the listings that the options ask for, and print how the table is read."""
    table = read_table(arguments.table)
    images: Path = arguments.images or arguments.table.parent
    columns = _columns(arguments, table)
    attributes = _attribute_names(columns.attributes)
    name = arguments.name or _name_of(arguments.output)
    check_name(name)
    data = Labelled(
        dataset=name,
        rows=rows_of(table, columns, images),
        attributes=attributes,
        classes=tuple(words_of("--classes", arguments.classes)),
        values=_values(arguments.values, attributes),
        splits=_pairs_of("--splits", arguments.splits),
    )
    found = scan_images(
        images,
        folders_of(row.path for row in data.rows),
        progress=not arguments.json and sys.stderr.isatty(),
    )
    listings = labelled_listings(data, found, skip_missing=arguments.skip_missing)
    _report(arguments, table, columns, listings)
    return listings


def _columns(arguments: argparse.Namespace, table: Table) -> Columns:
    given = {}
    for field in ("path", "label", "split", "id"):
        name = getattr(arguments, f"{field}_column")
        if name is not None:
            if name:
                table.column(name, f"--{field}-column")
            given[field] = name
    attributes = None
    if arguments.attributes is not None:
        attributes = words_of("--attributes", arguments.attributes)
        for name in attributes:
            table.column(name, "--attributes")
    return choose_columns(table, given, attributes)


def _name_of(output: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", output.resolve().name.lower()).strip("-_")


def _attribute_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of attributes, which have fewer signs than those of columns."""
    names = [re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:_LONGEST] for name in columns]
    for name, column in zip(names, columns, strict=True):
        if not name[:1].isalpha() or names.count(name) > 1:
            problem = "occurs twice" if names.count(name) > 1 else "does not begin with a letter"
            raise UsageError(f"--attributes: {column!r} {problem}; rename the column")
    return tuple(names)


def _values(given: Sequence[str], attributes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    values = {}
    for text in given:
        name, equals, words = text.partition("=")
        if not equals:
            raise UsageError(f"--values {text}: must be NAME=VALUES, such as place=land,water")
        if name not in attributes:
            raise UsageError(
                f"--values {text}: {name!r} is no attribute{hint(name, attributes)}; the "
                f"attributes are: {', '.join(attributes) or 'none'}"
            )
        values[name] = tuple(words_of("--values", words))
    return values


def words_of(option: str, text: str | None) -> list[str]:
    """Return the words of an option, which commas separate."""
    words = [word.strip() for word in (text or "").split(",")]
    if words == [""]:
        return []
    twice = next((word for word in words if words.count(word) > 1 or not word), None)
    if twice is not None:
        raise UsageError(f"{option} {text}: {twice!r} must be there once")
    return words


def _pairs_of(option: str, text: str | None) -> dict[str, str]:
    pairs = {}
    for pair in words_of(option, text):
        word, equals, name = pair.partition("=")
        if not (equals and word.strip() and name.strip()):
            raise UsageError(f"{option} {pair}: must be WORD=SPLIT, such as 0=train,1=selection")
        pairs[word.strip()] = name.strip()
    return pairs


def _report(
    arguments: argparse.Namespace, table: Table, columns: Columns, listings: Sequence[Listing]
) -> None:
    """Say how the table is read, so that a wrong guess is noticed."""
    guessed = "guessed; {} names another"
    rows = {
        "paths": (columns.path, arguments.path_column, "--path-column"),
        "labels": (columns.label or "(the folders)", arguments.label_column, "--label-column"),
        "splits": (columns.split or "(all train)", arguments.split_column, "--split-column"),
        "ids": (columns.id or "(from the paths)", arguments.id_column, "--id-column"),
        "attributes": (
            ", ".join(columns.attributes) or "(none)",
            arguments.attributes,
            "--attributes",
        ),
    }
    used = {columns.path, columns.label, columns.split, columns.id, *columns.attributes}
    unused = [name for name in table.columns if name not in used]
    if arguments.json:
        found = {**vars(columns), "unused": unused}
        print(json.dumps({"table": str(table.path), "columns": found}))
        return
    print(f"{table.path}: {len(table.cells):,} rows")
    for name, (value, given, option) in rows.items():
        note = "" if given is not None else f"  ({guessed.format(option)})"
        print(f"  {name:<10}  {value}{note}")
    print(f"  {'not used':<10}  {', '.join(unused) or '(none)'}")
    print_words(listings)


def print_words(listings: Sequence[Listing]) -> None:
    """Print the classes, the values of the attributes and the splits, which decide the numbers."""
    first = listings[0]
    for name, words in {"classes": first.classes, **first.attributes}.items():
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        print(f"  {name:<10}  {len(words)}: {', '.join(words[:_SHOWN])}{more}")
    for listing in listings:
        print(f"  {listing.split:<10}  {len(listing.items):,} images")
