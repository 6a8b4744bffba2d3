"""``metrics.jsonl``: the scalars of a run, one JSON object a line."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_shards.system.files import parse_json, write_synced
from rebias_dist.telemetry.tracker import Tracker

_log = logging.getLogger("rebias_dist")


class JsonLines(Tracker):
    """Writes each record of scalars as a line: step, epoch, time and the scalars.

    A NaN or infinite value is null, because JSON has no such numbers.

    Args:
        path: of the file.
        first_lost_step: lines of this step and later ones are dropped, and damaged lines.
    """

    def __init__(self, path: Path, first_lost_step: int) -> None:
        if path.exists():
            write_synced(path, b"".join(_kept_lines(path, first_lost_step)))
        # With line buffering each line is written at once and as a whole.
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int, when: float) -> None:
        """Write a line."""
        record = {"step": step, "epoch": epoch, "time": when, **values}
        self.file.write(json.dumps(plain(record), allow_nan=False) + "\n")

    def flush(self) -> None:
        """Write the lines to the disk."""
        os.fsync(self.file.fileno())

    def close(self, status: str | None) -> None:
        """Close the file."""
        self.file.close()


def plain(value: Any) -> Any:
    """Return JSON data with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def _kept_lines(path: Path, first_lost_step: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                # After a crash of the node or on a full disk the last line may be incomplete.
                step = parse_json(line)["step"]
            except (ValueError, KeyError, TypeError):
                step = None
            if not isinstance(step, int):
                _log.warning("%s: line %d is damaged and was dropped", path, number)
            elif step < first_lost_step:
                yield line.rstrip(b"\n") + b"\n"
