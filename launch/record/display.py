"""The state of runs as text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from launch.record.runs import Run

_RIGHT = ("STEP", "EPOCH", "IMAGES/S", "ETA", "AGE")


def table(runs: Sequence[Run]) -> str:
    """Return a table with a row for each run."""
    rows = [_row(run) for run in runs]
    aligned = ["right" if header in _RIGHT else "left" for header in rows[0]]
    # The headers are given as a row, because tabulate makes columns wider than headers.
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    return tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=aligned)


def _row(run: Run) -> dict[str, str]:
    return {
        "NAME": run.name,
        "METHOD": run.method or "–",
        "STATUS": run.status,
        "STEP": steps(run),
        "EPOCH": "–" if run.epoch is None else str(run.epoch),
        "IMAGES/S": "–" if run.images_per_s is None else f"{run.images_per_s:.4g}",
        "ETA": duration(run.eta_seconds),
        "ACCURACY": accuracy(run),
        "WHERE": where(run),
        "AGE": duration(run.age_seconds),
    }


def steps(run: Run) -> str:
    """Return the number of steps that are done, and of all steps."""
    if run.step is None:
        return "–"
    return f"{run.step}/{'?' if run.total_steps is None else run.total_steps}"


def accuracy(run: Run) -> str:
    """Return the newest accuracy and its split."""
    return "–" if run.accuracy is None else f"{run.accuracy:.3f} {run.accuracy_of}"


def where(run: Run) -> str:
    """Return the job of a run, or its host."""
    return f"job {run.job}" if run.job else run.host or "–"


def duration(seconds: float | None) -> str:
    """Return a time in the largest unit that fits, with two digits or more."""
    if seconds is None:
        return "–"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            number = seconds / length
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"
