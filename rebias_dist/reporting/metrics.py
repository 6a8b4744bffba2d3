"""The scalars of a run over its steps, from ``metrics.jsonl``, validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from data_shards.errors import DataShardsError
from data_shards.system.files import open_regular, parse_json

_LONGEST_LINE = 1 << 20  # bytes; a line of a run has some hundreds
_MOST_LINES = 5_000_000
POINTS = 150
"""The most points of a curve; more are averaged in stretches."""

Curve = tuple[list[float], list[float]]
"""Steps and values."""


def read_curves(folder: Path, wanted: Callable[[str], bool]) -> Mapping[str, Curve]:
    """Return the curves of a run whose tags are wanted; empty where the file is missing.

    Damaged lines are skipped, as the run itself does when it resumes. Long curves are thinned.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    try:
        with open_regular(folder / "metrics.jsonl") as file:
            lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
            for line in islice(lines, _MOST_LINES):
                for step, tag, value in _scalars(line):
                    if wanted(tag):
                        points.setdefault(tag, []).append((step, value))
    except (DataShardsError, OSError):
        return {}
    return {tag: _thinned(found) for tag, found in points.items()}


def _scalars(line: bytes) -> list[tuple[int, str, float]]:
    try:
        record = parse_json(line)
    except ValueError:
        return []
    step = record.get("step") if isinstance(record, dict) else None
    if type(step) is not int or not 0 <= step < 1 << 53:
        return []
    return [
        (step, tag, float(value))
        for tag, value in record.items()
        if tag not in ("step", "epoch", "time")
        and type(value) in (int, float)
        and abs(value) < 1e300
        and math.isfinite(value)
    ]


def _thinned(points: list[tuple[int, float]]) -> Curve:
    points.sort(key=lambda point: point[0])
    parts = np.array_split(np.array(points, dtype=np.float64), min(POINTS, len(points)))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()
