"""Two records of one benchmark, side by side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of the records; written by the harness.
FORMAT = 1
# A record of the same machine may differ by this much without a change of the code.
NOISE = 1.15
# What has to be equal for times to be comparable; other differences are named.
_SAME = ("processor", "cores", "threads")


class IncomparableError(Exception):
    """The records cannot be compared; one line says why."""


def read_record(path: Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        IncomparableError: unreadable, no record, or of another format.
    """
    try:
        record = json.loads(path.read_text())
        found, _ = record["format"], record["benchmark"]
    except OSError as error:
        raise IncomparableError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise IncomparableError(f"{path}: not a record of a benchmark") from None
    if found != FORMAT:
        raise IncomparableError(f"{path}: format {found!r}; this version reads {FORMAT}")
    return dict(record)


def _times(record: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Name and median of each time: its table, what leads its row, its column."""
    for table in record["tables"]:
        for row in table["rows"]:
            leading = []
            for cell in row:
                if isinstance(cell, dict):
                    break
                leading.append(cell)
            for column, cell in zip(table["columns"], row, strict=True):
                if isinstance(cell, dict):
                    yield (table["title"], " ".join(leading), column), cell["median"]


def compare(before: Path, after: Path) -> int:
    """Print each time of both records and their ratio; return 1 if one got slower.

    Raises:
        IncomparableError: different benchmarks, or times of different machines.
    """
    a, b = read_record(before), read_record(after)
    if a["benchmark"] != b["benchmark"]:
        raise IncomparableError(
            f"{before} is of the benchmark {a['benchmark']}, {after} of {b['benchmark']}"
        )
    for name in _SAME:
        one, other = a["machine"].get(name), b["machine"].get(name)
        if one != other:
            raise IncomparableError(
                f"the records are of different machines ({name}: {one} and {other}), "
                "so a difference of their times says nothing about the code"
            )
    for name in sorted(a["machine"].keys() | b["machine"].keys()):
        one, other = a["machine"].get(name), b["machine"].get(name)
        if one != other:
            print(f"{name}: {one} -> {other}")
    earlier, later = dict(_times(a)), dict(_times(b))
    slower = 0
    print(
        "\n| table | row | column | before ms | after ms | after / before | |\n" + "|---" * 7 + "|"
    )
    for key in (key for key in earlier if key in later):
        ratio = later[key] / earlier[key]
        verdict = "slower" if ratio > NOISE else "faster" if ratio < 1 / NOISE else ""
        slower += verdict == "slower"
        print(f"| {' | '.join(key)} | {earlier[key] * 1e3:.4g} | {later[key] * 1e3:.4g} "
              f"| {ratio:.2f} | {verdict} |")  # fmt: skip
    for key in sorted(earlier.keys() ^ later.keys()):
        print(f"only in {before if key in earlier else after}: {', '.join(key)}")
    return int(slower > 0)
