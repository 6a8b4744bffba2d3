"""Checkpoints: written whole or not at all, checked before they are loaded, never unpickled.

``checkpoints/step-000000840/`` holds ``state.pt`` and ``checkpoint.json``, which names its
size and SHA-256 and is written last; ``best.json`` beside them names the best one.
"""

from __future__ import annotations

import hashlib
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


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Save a state as the checkpoint of a step, then remove the oldest beyond ``keep``."""
    final = folder / f"step-{step:09d}"
    if final.exists():
        return final
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with open(temporary / "state.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    content = (temporary / "state.pt").read_bytes()
    record = {
        "format": FORMAT,
        "step": step,
        "files": {
            "state.pt": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        },
    }
    write_synced(temporary / "checkpoint.json", json.dumps(record, indent=1).encode())
    os.rename(temporary, final)
    sync_folder(folder)
    _remove_old(folder, keep)
    return final


def mark_best(folder: Path, step: int, **figures: Any) -> None:
    """Record that the checkpoint of a step is the best so far, and by which figures."""
    write_synced(folder / "best.json", json.dumps({"step": step, **figures}, indent=1).encode())


def best_step(folder: Path) -> int | None:
    """Return the step of the best checkpoint, or None where there is none yet."""
    try:
        return int(json.loads((folder / "best.json").read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'best.json'}: damaged; delete it to go on without") from None


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
    try:
        record = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        expected = record["files"]["state.pt"]
        content = (path / "state.pt").read_bytes()
        if record["format"] != FORMAT:
            raise DataError(f"{path}: format {record['format']!r} is not read, only {FORMAT}")
        # Before torch.load, which accepts flipped bits silently.
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise DataError(f"{path}/state.pt: its content does not match its SHA-256")
        with open(path / "state.pt", "rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise DataError(
            f"{path}: not a whole checkpoint ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(state, dict):
        raise DataError(f"{path}: not a checkpoint")
    return state


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


def load_choice(folder: Path, choice: str) -> dict[str, Any]:
    """Return the state of the ``best`` or the ``last`` checkpoint."""
    step = best_step(folder) if choice == "best" else max(steps(folder), default=None)
    if step is None:
        raise ConfigError(f"{folder}: the run has no {choice} checkpoint yet")
    return load(folder, step)


def _remove_old(folder: Path, keep: int) -> None:
    best = best_step(folder)
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / f"step-{step:09d}", ignore_errors=True)
