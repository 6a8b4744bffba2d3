"""Checkpoints: written whole or not at all, checked before they are loaded, never unpickled.

``checkpoints/step-000000840/`` holds ``state.pt`` and ``checkpoint.json``, which is written
last and names the state's size and SHA-256 and the step of the best checkpoint so far.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from data_shards.files import sync_folder, write_synced
from rebias_dist.errors import ConfigError, DataError

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})$")


def save(
    folder: Path, step: int, state: dict[str, Any], *, keep: int, best_step: int | None = None
) -> None:
    """Save a state as the checkpoint of a step, in place of an earlier one of that step.

    Then remove all but the newest ``keep`` and that of ``best_step``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What a killed save has left; the folder has one owner, so nobody is at work on it.
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}"
    temporary.mkdir()
    with open(temporary / "state.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    content = (temporary / "state.pt").read_bytes()
    record = {
        "format": FORMAT,
        "step": step,
        "best_step": best_step,
        "files": {
            "state.pt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        },
    }
    write_synced(temporary / "checkpoint.json", json.dumps(record, indent=1).encode())
    if final.exists():  # a damaged one, or one from before an evaluation
        final.rename(folder / f".{final.name}.replaced")
    temporary.rename(final)
    sync_folder(folder)
    shutil.rmtree(folder / f".{final.name}.replaced", ignore_errors=True)
    for old in steps(folder)[:-keep]:
        if old != best_step:
            shutil.rmtree(folder / f"step-{old:09d}", ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    matches = (_NAME.match(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def load(folder: Path, step: int) -> dict[str, Any]:
    """Return the state saved at a step.

    Raises:
        DataError: a file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = folder / f"step-{step:09d}"
    expected = _record(path)["files"]["state.pt"]["sha256"]
    try:
        content = (path / "state.pt").read_bytes()
        # Before torch.load, which accepts flipped bits silently.
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(f"{path}/state.pt: its content does not match its SHA-256")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise DataError(f"{path}: not a checkpoint")
    return state


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        best = record["best_step"]
        if record["format"] != FORMAT:
            raise DataError(f"{path}: format {record['format']!r} is not read, only {FORMAT}")
        if not isinstance(record["files"]["state.pt"]["sha256"], str) or not (
            best is None or isinstance(best, int)
        ):
            raise TypeError("a value of another type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a whole checkpoint ({error})") from None
    return dict(record)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest intact state, and a line for each damaged one that was passed over.

    The state is None where no checkpoint was ever written.

    Raises:
        DataError: there are checkpoints, but none is intact.
    """
    damaged: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(folder, step), damaged
        except DataError as error:
            damaged.append(str(error))
    if damaged:
        raise DataError(
            f"{folder}: none of {len(damaged)} checkpoints is intact ({damaged[0]}); "
            "restore one, or start under another name"
        )
    return None, damaged


def choose(folder: Path, choice: str) -> int:
    """Return the step of the ``best`` or the ``last`` checkpoint.

    Raises:
        ConfigError: there is none yet.
        DataError: the newest checkpoint, which knows the best, is damaged.
    """
    newest = max(steps(folder), default=None)
    step = newest
    if newest is not None and choice == "best":
        step = _record(folder / f"step-{newest:09d}")["best_step"]
    if step is None:
        raise ConfigError(f"{folder}: the run has no {choice} checkpoint yet")
    return step


def load_choice(folder: Path, choice: str) -> dict[str, Any]:
    """Return the state of the ``best`` or the ``last`` checkpoint."""
    return load(folder, choose(folder, choice))
