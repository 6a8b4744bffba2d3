"""Keep what a report needs of a run: its configuration, results, state and thinned curves.

A run's folder has checkpoints and megabytes of metrics; its archive has some kilobytes and is a
run's folder too, from which a report is made in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel

from data_shards.system.files import read_json, write_synced
from rebias_dist.config.files import to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.reporting.metrics import read_curves
from rebias_dist.reporting.runs import Run
from rebias_dist.runs import results

_Part = TypeVar("_Part", bound=BaseModel)
_DIGITS = 5  # significant digits of the points of curves
_STATE = ("name", "method", "world_size", "status", "step", "total_steps", "epoch")


def is_drawn(tag: str) -> bool:
    """Return whether a report draws the curve of a tag."""
    return tag.endswith(("/ce", "/sigma", "_accuracy")) or tag.startswith("f/hsic_g")


def archive(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the archives of runs with results into folders of ``out``; return the folders.

    Only the last part of each path in the configuration is kept, because other machines have other
    folders. The training shards are not copied, and neither are their options, such as ρ; a report
    has those of a run with ``data.root`` only where the shards are.

    Raises:
        ConfigError: two runs have the same name, an archive is there already, or cannot be written.
    """
    folders = [out / run.name for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"--archive: two runs are called {folder.name}")
        if folder.exists():
            raise ConfigError(f"--archive: {folder} exists; remove it, or give another folder")
    try:
        for run, folder in zip(runs, folders, strict=True):
            folder.mkdir(parents=True)
            for name, content in _files(run).items():
                write_synced(folder / name, content)
    except OSError as error:
        raise ConfigError(f"--archive: {error.filename or out}: {error.strerror}") from None
    return folders


def _files(run: Run) -> dict[str, bytes]:
    assert run.config is not None
    state = read_json(run.folder / "state.json")
    kept = {key: state[key] for key in _STATE if key in state}
    figures = results.read(run.folder / "results.json")
    return {
        "config.yaml": to_yaml(_without_folders(run.config)).encode(),
        "state.json": (json.dumps(kept, indent=1) + "\n").encode(),
        "results.json": (json.dumps(figures, separators=(",", ":")) + "\n").encode(),
        "metrics.jsonl": _metrics(run.folder),
    }


def _without_folders(config: Config) -> Config:
    tests = {name: PurePath(folder).name for name, folder in config.data.other_tests.items()}
    changed = {
        "runs_dir": PurePath(config.runs_dir).name,
        "data": _short(config.data, "root", "source", "aligned").model_copy(
            update={"other_tests": tests}
        ),
        "f": _short(config.f, "checkpoint", "pretrained"),
        "g": [_short(g, "checkpoint", "pretrained") for g in config.g],
    }
    return config.model_copy(update=changed)


def _short(part: _Part, *fields: str) -> _Part:
    """Return a part of a configuration with the last part of each path that is set."""
    paths = {name: getattr(part, name) for name in fields}
    short = {name: PurePath(path).name for name, path in paths.items() if isinstance(path, str)}
    return part.model_copy(update=short)


def _metrics(folder: Path) -> bytes:
    lines: dict[int, dict[str, Any]] = {}
    for tag, (steps, values) in read_curves(folder, is_drawn).items():
        for step, value in zip(steps, values, strict=True):
            lines.setdefault(round(step), {"step": round(step)})[tag] = float(
                f"{value:.{_DIGITS}g}"
            )
    return "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines)).encode()
