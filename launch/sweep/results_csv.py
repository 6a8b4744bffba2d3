"""The results of a sweep as a CSV file of one row a cell, and the commits of each cell."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards.system.files import write_synced
from launch.record.reading import read_json, read_state
from launch.sweep.grid import Cell
from rebias_dist.config.files import flat
from rebias_dist.errors import ConfigError, DataError
from rebias_dist.runs.results import choice_name
from rebias_dist.runs.results import read as read_results

_PACKAGE = Path(__file__).resolve().parents[1]


def git_commit() -> str:
    """Return the commit of the checkout that this package runs from; empty outside of one.

    It ends in ``-dirty`` if a file in git has changed since.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    try:
        # An installed package may lie in the checkout of another project.
        git("ls-files", "--error-unmatch", str(_PACKAGE / "__init__.py"))
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return ""


def note_commit(path: Path) -> None:
    """Add the current commit to those that a cell ran with."""
    commits = _commits(path)
    now = git_commit()
    if now not in commits:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, (json.dumps([*commits, now]) + "\n").encode())


def _commits(path: Path) -> list[str]:
    found = read_json(path)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def status_of(folder: Path) -> str:
    """Return the status in a run's state file; ``not started`` where there is none."""
    status = read_state(folder).get("status", "not started")
    return status if isinstance(status, str) else "damaged"


def write_table(path: Path, cells: Sequence[Cell], axes: Sequence[str]) -> None:
    """Write the table: cell, status, commit, the keys that vary, accuracies, the configuration.

    Accuracies are columns such as ``last/unbiased/f``, in [0, 1]; empty for a cell that is not
    finished. A checkpoint that test data chose is ``oracle/…``, not ``best/…``.

    Args:
        path: of the CSV file, replaced as a whole.
        cells: of a sweep.
        axes: dotted keys that vary between the cells, in addition to the seeds.

    Raises:
        ConfigError: the file cannot be written.
    """
    keys = list(dict.fromkeys([*axes, "seed", "data.seed"]))
    rows = []
    for cell in cells:
        settings = flat(cell.config.model_dump())
        row = {"cell": cell.name, "status": status_of(cell.folder)}
        row |= {"git_commit": " ".join(_commits(cell.commits))}
        row |= {key: settings.get(key, "") for key in keys}
        rows.append({**row, **_figures(cell), "config": json.dumps(cell.config.identity())})
    columns = dict.fromkeys(column for row in rows for column in row if column != "config")
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, "config"])
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, text.getvalue().encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _figures(cell: Cell) -> Mapping[str, float]:
    if status_of(cell.folder) != "finished":
        return {}
    try:
        results = read_results(cell.folder / "results.json")
        checkpoints: dict[str, Any] = results["checkpoints"]
        return {
            f"{choice_name(results, choice)}/{split}/{network}": float(score["accuracy"])
            for choice, found in sorted(checkpoints.items(), reverse=True)  # last before best
            for split, part in found["splits"].items()
            for network, score in part["networks"].items()
        }
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return {}
