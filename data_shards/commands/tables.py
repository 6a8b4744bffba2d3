"""The options of ``convert table`` and of the data sets with known biases."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.commands.shared import words_of
from data_shards.errors import UsageError
from data_shards.sources.datasets import check_name
from data_shards.sources.labelled import (
    HoldOut,
    Labelled,
    folders_of,
    labelled_listings,
    rows_of,
    scan_images,
)
from data_shards.sources.listing import Listing
from data_shards.sources.presets import PRESETS, Preset, preset_listings
from data_shards.sources.tables import Columns, Table, choose_columns, read_table
from data_shards.sources.words import hint

SUMMARY = "images with bias labels, from a table (CSV, TSV, Parquet) with a row for each"
EXAMPLE = (
    "python -m data_shards convert table birds.csv --attributes place "
    "--splits 0=train,1=selection,2=test --output shards/birds"
)

_LONGEST = 64  # characters of the name of an attribute
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
    _add_split_arguments(parser)


def preset_example(preset: Preset) -> str:
    """Return a command that converts a data set with known biases."""
    name = preset.name
    return f"python -m data_shards convert {name} --source {name} --output shards/{name}"


def add_preset_arguments(parser: argparse.ArgumentParser, preset: Preset) -> None:
    """Add the options that :func:`preset_listings_from` reads."""
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"the unpacked data set: {preset.tree}; from {preset.home}",
    )
    parser.add_argument(
        "--target", metavar="NAME", help=f"the field of the class (default: {preset.target})"
    )
    parser.add_argument(
        "--attributes",
        metavar="NAMES",
        help=f"fields of biases (default: {','.join(preset.attributes) or 'none'})",
    )
    if "(?P<variant>" in preset.pattern:
        parser.add_argument(
            "--variant", metavar="NAME", help="the version, such as 0.5pct (default: the only one)"
        )
    _add_split_arguments(parser)


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", metavar="NAME", help="convert this split only (default: all)")
    parser.add_argument(
        "--hold-out",
        metavar="PARTS",
        help="take splits that are not there from each class of train, such as "
        "selection=0.1,test=0.2; --seed chooses the images",
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
        hold_out=_hold_out(arguments),
    )
    found = scan_images(
        images,
        folders_of(row.path for row in data.rows),
        progress=not arguments.json and sys.stderr.isatty(),
    )
    listings = labelled_listings(data, found, skip_missing=arguments.skip_missing)
    _report(arguments, table, columns, listings)
    return _of_split(arguments, listings)


def preset_listings_from(arguments: argparse.Namespace) -> list[Listing]:
    """Return the listings of a data set with known biases, and print what was found."""
    preset = PRESETS[arguments.dataset]
    given = arguments.attributes
    listings = preset_listings(
        preset,
        arguments.source,
        target=arguments.target,
        attributes=None if given is None else words_of("--attributes", given),
        variant=getattr(arguments, "variant", None),
        hold_out=_hold_out(arguments),
        progress=not arguments.json and sys.stderr.isatty(),
    )
    if not arguments.json:
        print(f"{arguments.source}: {preset.name}")
        _print_words(listings)
    return _of_split(arguments, listings)


def _of_split(arguments: argparse.Namespace, listings: Sequence[Listing]) -> list[Listing]:
    names = [listing.split for listing in listings]
    if arguments.split is None:
        return list(listings)
    if arguments.split not in names:
        raise UsageError(
            f"--split {arguments.split}: there is no such split{hint(arguments.split, names)}; "
            f"there is {', '.join(names)}"
        )
    return [listing for listing in listings if listing.split == arguments.split]


def _hold_out(arguments: argparse.Namespace) -> HoldOut | None:
    parts = {}
    for split, part in _pairs_of("--hold-out", arguments.hold_out).items():
        try:
            parts[split] = float(part)
        except ValueError:
            raise UsageError(f"--hold-out {split}={part}: {part!r} is no number") from None
    return HoldOut(parts, arguments.seed) if parts else None


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
    """Return the names of attributes: those of their columns in letters, digits, '_' and '-'."""
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
        if name in values:
            raise UsageError(f"--values {text}: {name!r} must be there once")
        values[name] = tuple(words_of("--values", words))
    return values


def _pairs_of(option: str, text: str | None) -> dict[str, str]:
    example = "selection=0.1" if option == "--hold-out" else "0=train"
    pairs = {}
    for pair in words_of(option, text):
        word, equals, name = pair.partition("=")
        if not (equals and word.strip() and name.strip()):
            raise UsageError(f"{option} {pair}: must be two words, such as {example}")
        if word.strip() in pairs:
            raise UsageError(f"{option} {text}: {word.strip()!r} must be there once")
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
    _print_words(listings)


def _print_words(listings: Sequence[Listing]) -> None:
    """Print the classes, the values of the attributes and the splits, which decide the numbers."""
    first = listings[0]
    for name, words in {"classes": first.classes, **first.attributes}.items():
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        print(f"  {name:<10}  {len(words)}: {', '.join(words[:_SHOWN])}{more}")
    for listing in listings:
        print(f"  {listing.split:<10}  {len(listing.items):,} images")
