"""Runs as text."""

from __future__ import annotations

from collections.abc import Sequence

from launch.record.folders import Run

_COLUMNS = (
    *("NAME", "METHOD", "STATUS", "STEP", "EPOCH", "IMAGES/S", "ETA", "ACCURACY"),
    *("WHERE", "AGE"),
)
_RIGHT = {"STEP", "EPOCH", "IMAGES/S", "ETA", "AGE"}


def table(runs: Sequence[Run]) -> str:
    """Return a row for each run."""
    rows = [_COLUMNS, *(_cells(run) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cells(run: Run) -> tuple[str, ...]:
    return (
        run.name,
        run.method or "–",
        run.status,
        steps(run),
        "–" if run.epoch is None else str(run.epoch),
        "–" if run.images_per_s is None else f"{run.images_per_s:.4g}",
        duration(run.eta_seconds),
        accuracy(run),
        where(run),
        duration(run.age_seconds),
    )


def steps(run: Run) -> str:
    """Return the steps that are done, of all."""
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
    """Return seconds in the largest unit that fits, to two figures or so."""
    if seconds is None:
        return "–"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            number = seconds / length
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"
