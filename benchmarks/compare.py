"""Two records of one benchmark, side by side."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Version of the records that the harness writes.
FORMAT = 1
# Two records of one machine may differ by this factor without a change of the code.
NOISE = 1.15
# Measurements can only be compared if these are equal; other differences are printed.
_SAME = ("processor", "cores", "threads", "memory GB")

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Row = tuple[str, str, str]  # the table, the row's leading cells, the column


class IncomparableError(Exception):
    """The records cannot be compared; one line says why."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TimesCell(_Model):
    """Seconds of one program over its repeats."""

    smallest: _Positive
    median: _Positive
    largest: _Positive
    repeats: int


class MegabytesCell(_Model):
    """Memory."""

    megabytes: _Positive


class TableRecord(_Model):
    """A table; ``baselines`` are the columns that do not measure our code."""

    title: str
    columns: list[str]
    baselines: list[str] = []
    rows: list[list[TimesCell | MegabytesCell | str]]

    @model_validator(mode="after")
    def _rows_have_all_columns(self) -> "TableRecord":
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row without all columns")
        return self


class Record(_Model):
    """The results of one run of a benchmark, and its machine."""

    format: int
    benchmark: str
    machine: dict[str, str | int]
    options: dict[str, Any] = {}
    tables: list[TableRecord]


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        IncomparableError: it cannot be read, is not a record, or has another format.
    """
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise IncomparableError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:4])
        raise IncomparableError(
            f"{path}: not a record of a benchmark ({where or 'all of it'}: {first['msg']})"
        ) from None
    if record.format != FORMAT:
        raise IncomparableError(f"{path}: has format {record.format}; this version reads {FORMAT}")
    return record


def _measured(record: Record) -> Iterator[tuple[_Row, float]]:
    """Yield the place of each measurement, and the milliseconds (median) or megabytes."""
    for table in record.tables:
        for row in table.rows:
            first = next((n for n, cell in enumerate(row) if not isinstance(cell, str)), 0)
            leading = " ".join(str(cell) for cell in row[:first])
            for column, cell in zip(table.columns, row, strict=True):
                if isinstance(cell, TimesCell):
                    yield (table.title, leading, column), 1e3 * cell.median
                elif isinstance(cell, MegabytesCell):
                    yield (table.title, leading, column), cell.megabytes


def compare(before: Path, after: Path) -> int:
    """Print each measurement of both records and their ratio; return 1 if one of ours got worse.

    The ratios are divided by the change of the baselines in the same row, because that comes from
    the machine, not from our code.

    Raises:
        IncomparableError: different benchmarks, machines or options, or nothing in common.
    """
    a, b = read_record(before), read_record(after)
    _check_comparable(before, a, after, b)
    for name in sorted(a.machine.keys() | b.machine.keys()):
        one, other = a.machine.get(name), b.machine.get(name)
        if one != other:
            print(f"{name}: {one} -> {other}")
    earlier, later = dict(_measured(a)), dict(_measured(b))
    common = [place for place in earlier if place in later]
    if not common:
        raise IncomparableError(f"{before} and {after} have no measurement in common")
    baselines = {(t.title, column) for t in (*a.tables, *b.tables) for column in t.baselines}
    columns = "table", "row", "column", "before", "after", "after / before", "beside baselines", ""
    print(f"\nMilliseconds or megabytes\n\n| {' | '.join(columns)} |\n" + "|---" * 8 + "|")
    worse = 0
    for place in common:
        title, leading, column = place
        change = later[place] / earlier[place]
        beside, verdict = "", "baseline"
        if (title, column) not in baselines:
            drifts = [
                later[other] / earlier[other]
                for other in common
                if other[:2] == place[:2] and (title, other[2]) in baselines
            ]
            ours = change / math.exp(math.fsum(map(math.log, drifts)) / max(len(drifts), 1))
            beside = f"{ours:.2f}"
            verdict = "worse" if ours > NOISE else "better" if ours < 1 / NOISE else ""
            worse += verdict == "worse"
        print(f"| {title} | {leading} | {column} | {earlier[place]:.4g} | {later[place]:.4g} "
              f"| {change:.2f} | {beside} | {verdict} |")  # fmt: skip
    for place in sorted(earlier.keys() ^ later.keys()):
        print(f"only in {before if place in earlier else after}: {', '.join(place)}")
    return int(worse > 0)


def _check_comparable(before: Path, a: Record, after: Path, b: Record) -> None:
    if a.benchmark != b.benchmark:
        raise IncomparableError(
            f"{before} is of the benchmark {a.benchmark}, {after} of {b.benchmark}"
        )
    for name in _SAME:
        one, other = a.machine.get(name), b.machine.get(name)
        if one != other:
            raise IncomparableError(
                f"the records are of different machines ({name}: {one} and {other}), "
                "so a difference of their measurements says nothing about the code"
            )
    for name in sorted(a.options.keys() | b.options.keys()):
        one, other = a.options.get(name), b.options.get(name)
        if one != other:
            raise IncomparableError(
                f"the records were made with different options ({name}: {one} and {other})"
            )
