"""Keep what a report needs of a run: configuration, results, state, curves, options of the shards.

A run's folder has checkpoints and megabytes of metrics; its archive has some kilobytes and is a
run's folder too, from which a report is made in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import BaseModel

from data_shards.system.files import read_json, write_synced
from rebias_dist.config.files import to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.reporting.metrics import read_curves
from rebias_dist.reporting.runs import Run
from rebias_dist.reporting.training_data import KEPT

_Part = TypeVar("_Part", bound=BaseModel)
_DIGITS = 5  # significant digits of the points of curves
_STATE = ("name", "method", "world_size", "status", "step", "total_steps", "epoch")


def is_drawn(tag: str) -> bool:
    """Return whether a report draws the curve of a tag."""
    return tag.endswith(("/ce", "/sigma", "_accuracy")) or tag.startswith("f/hsic_g")


def archive(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the archives of runs with results into folders of ``out``; return the folders.

    Only the last part of each path in the configuration is kept, because other machines have other
    folders; more parts where two paths would become one, for a path may tell two settings apart.
    The images are not copied.

    Raises:
        ConfigError: two runs have the same name, an archive is there already, or cannot be written.
    """
    folders = [out / run.name for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(
                f"--archive: two runs are called {folder.name}; archive them into two folders"
            )
        if folder.exists():
            raise ConfigError(f"--archive: {folder} exists; remove it, or give another folder")
    short = _shortened(run.config for run in runs if run.config)
    try:
        for run, folder in zip(runs, folders, strict=True):
            folder.mkdir(parents=True)
            for name, content in _files(run, short).items():
                write_synced(folder / name, content)
    except OSError as error:
        raise ConfigError(f"--archive: {error.filename or out}: {error.strerror}") from None
    return folders


def _files(run: Run, short: Mapping[str, str]) -> dict[str, bytes]:
    assert run.config is not None
    assert run.results is not None
    state = read_json(run.folder / "state.json")
    kept = {key: state[key] for key in _STATE if key in state}
    # Options that are not known are kept too: 'root' may be another folder of another machine.
    options = json.dumps({"options": dict(run.made_with)}, indent=1) + "\n"
    return {
        **({} if run.config.data.root is None else {KEPT: options.encode()}),
        "config.yaml": to_yaml(_with_paths(run.config, short.__getitem__)).encode(),
        "state.json": (json.dumps(kept, indent=1) + "\n").encode(),
        # Only what a report reads: groups and intervals come from the counts again.
        "results.json": (run.results.model_dump_json(exclude_unset=True) + "\n").encode(),
        "metrics.jsonl": _metrics(run.folder),
    }


def _shortened(configs: Iterable[Config]) -> dict[str, str]:
    """Return the last part of each path, and more parts where they tell it from another path."""
    paths: set[str] = set()

    def note(path: str) -> str:
        paths.add(path)
        return path

    for config in configs:
        _with_paths(config, note)
    every = {PurePath(path).parts for path in paths}
    short = {}
    for path in paths:
        parts = PurePath(path).parts
        count = 1
        while count < len(parts) and sum(p[-count:] == parts[-count:] for p in every) > 1:
            count += 1
        short[path] = str(PurePath(*parts[-count:]))
    return short


def _with_paths(config: Config, change: Callable[[str], str]) -> Config:
    """Return a configuration whose paths are changed."""

    def changed(part: _Part, *fields: str) -> _Part:
        paths = {name: getattr(part, name) for name in fields}
        return part.model_copy(
            update={name: change(path) for name, path in paths.items() if isinstance(path, str)}
        )

    tests = {name: change(folder) for name, folder in config.data.other_tests.items()}
    data = changed(config.data, "root", "source", "aligned")
    parts = {
        "data": data.model_copy(update={"other_tests": tests}),
        "f": changed(config.f, "checkpoint", "pretrained"),
        "g": [changed(g, "checkpoint", "pretrained") for g in config.g],
    }
    return changed(config, "runs_dir").model_copy(update=parts)


def _metrics(folder: Path) -> bytes:
    lines: dict[int, dict[str, Any]] = {}
    for tag, (steps, values) in read_curves(folder, is_drawn).items():
        for step, value in zip(steps, values, strict=True):
            lines.setdefault(round(step), {"step": round(step)})[tag] = float(
                f"{value:.{_DIGITS}g}"
            )
    return "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines)).encode()
