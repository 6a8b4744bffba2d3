"""Checkpoints: written whole or not at all, checked before they are loaded, never unpickled.

``checkpoints/step-000000840/`` holds ``state.pt`` and ``checkpoint.json``. The latter is written
last. It has the state's size and SHA-256, the step of the best checkpoint so far, the versions
that wrote it, and its own SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from data_shards.system.file_system import sync_folder
from data_shards.system.files import naming, parse_json, write_synced
from rebias_dist import version
from rebias_dist.errors import ConfigError, DataError, RebiasError
from rebias_dist.models.untrusted import load_untrusted

FORMAT = 2
_NAME = re.compile(r"step-(\d{9})$")
_REPLACED = ".replaced"
DAMAGED = "damaged-"
"""Prefix of the folder of a checkpoint that was set aside as damaged."""
_STATE, _RECORD = "state.pt", "checkpoint.json"
# Bytes that the archive adds to each tensor at most, and those of plain values and the record.
_OVERHEAD_EACH, _OVERHEAD = 1024, 1 << 18


class _Hashing:
    """Hashes a file while it is written; torch.save writes it from front to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0
        self.failure: BaseException | None = None

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.bytes += len(content)
        try:
            return self._file.write(content)
        except BaseException as error:
            # torch.save raises an error of its own instead, without the cause.
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


# ---------------------------------------------------------------------------- writing


def copied(value: Any) -> Any:
    """Return a copy of a nested state on the CPU, which training cannot change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(entry) for entry in value)
    return value


def _needed(value: Any) -> int:
    """Return an upper bound of the bytes that a nested state takes on the disk."""
    if isinstance(value, torch.Tensor):
        return value.nbytes + _OVERHEAD_EACH
    if isinstance(value, dict):
        return sum(_needed(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_needed(entry) for entry in value)
    return 0


def _check_space(folder: Path, state: dict[str, Any]) -> None:
    needed, disk = _needed(state) + _OVERHEAD, shutil.disk_usage(folder)
    free = disk.free
    if disk.total and free < needed:  # a file system of FUSE may know no sizes
        raise RebiasError(
            f"{folder}: no room for a checkpoint: it needs {needed / 1e6:.1f} MB and "
            f"{free / 1e6:.1f} MB are free, so {(needed - free) / 1e6:.1f} MB are missing; "
            "earlier checkpoints are intact"
        )


def save(
    folder: Path, step: int, state: dict[str, Any], *, keep: int, best_step: int | None = None
) -> int:
    """Save a state as the checkpoint of a step, replacing an earlier one of that step.

    Then remove all checkpoints but the newest ``keep`` and that of ``best_step``.

    Returns:
        The size of the state's file in bytes.

    Raises:
        RebiasError: there is not enough room on the disk; nothing was written.
        OSError: the disk failed; earlier checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Left by a save that was killed; only one process at a time writes to this folder.
    for left_over in folder.glob(".step-*"):
        shutil.rmtree(left_over)
    _check_space(folder, state)
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}"
    temporary.mkdir()
    with naming(temporary / _STATE), open(temporary / _STATE, "wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise hashing.failure or error from None
        file.flush()
        os.fsync(file.fileno())
    record = {
        "format": FORMAT,
        "step": step,
        "best_step": best_step,
        "versions": {
            "rebias_dist": version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "files": {_STATE: {"bytes": hashing.bytes, "sha256": hashing.hash.hexdigest()}},
    }
    write_synced(temporary / _RECORD, _sealed(record))
    sync_folder(temporary)
    replaced = folder / f".{final.name}{_REPLACED}"
    if final.exists():  # a damaged one, or one from before an evaluation
        final.rename(replaced)
    temporary.rename(final)
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in steps(folder)[:-keep]:
        if old != best_step:
            shutil.rmtree(folder / f"step-{old:09d}", ignore_errors=True)
    return hashing.bytes


def _sealed(record: dict[str, Any]) -> bytes:
    """Return a record with its own SHA-256 as text, in its only valid form."""
    seal = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({**record, "sha256": seal}, indent=1).encode()


# ---------------------------------------------------------------------------- reading


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
    expected = _record(path, step)["files"][_STATE]
    try:
        # Check the size first, so that a huge file is not read.
        if (size := (path / _STATE).stat().st_size) != expected["bytes"]:
            raise DataError(f"{path}/{_STATE}: has {size} bytes instead of {expected['bytes']}")
        content = (path / _STATE).read_bytes()
        # Check the hash before torch.load, which accepts flipped bits silently.
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise DataError(f"{path}/{_STATE}: its content does not match its SHA-256")
        state = load_untrusted(io.BytesIO(content))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not an intact checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("step") != step:
        raise DataError(f"{path}: not the checkpoint of step {step}")
    return state


def _record(path: Path, step: int) -> dict[str, Any]:
    try:
        text = (path / _RECORD).read_bytes()
        record = parse_json(text)
        if record["format"] != FORMAT:
            raise DataError(f"{path}: has format {record['format']!r}; only {FORMAT} is read")
        del record["sha256"]
        if _sealed(record) != text:
            raise DataError(f"{path}/{_RECORD}: its content does not match its SHA-256")
        if record["step"] != step:
            raise DataError(f"{path}: holds the checkpoint of step {record['step']}")
        best, file = record["best_step"], record["files"][_STATE]
        if not (
            isinstance(file["sha256"], str)
            and isinstance(file["bytes"], int)
            and (best is None or isinstance(best, int))
        ):
            raise TypeError("a value has a wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an intact checkpoint ({error})") from None
    return dict(record)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest intact state, and a line for each damaged one that was passed over.

    The state is None if there are no checkpoints. Call this only with the lock on the run: it
    renames a checkpoint back if :func:`save` was killed while it replaced that checkpoint.

    Raises:
        DataError: there are checkpoints, but none is intact.
    """
    for replaced in folder.glob(f".step-*{_REPLACED}"):
        final = folder / replaced.name.removeprefix(".").removesuffix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
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


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints beyond a step, which were passed over as damaged.

    Otherwise :func:`save` would count them among the newest and remove intact ones instead. Call
    this only with the lock on the run.

    Raises:
        OSError: a folder cannot be renamed.
    """
    for beyond in steps(folder):
        if beyond > step:
            damaged = folder / f"step-{beyond:09d}"
            aside = folder / f"{DAMAGED}{damaged.name}"
            shutil.rmtree(aside, ignore_errors=True)  # set aside before
            damaged.rename(aside)
    sync_folder(folder)


def choose(folder: Path, choice: str) -> int:
    """Return the step of the ``best`` or the ``last`` checkpoint.

    Raises:
        ConfigError: there is none yet or none any more, or ``choice`` is another word.
        DataError: the newest checkpoint, which names the best, is damaged.
    """
    if choice not in ("best", "last"):
        raise ConfigError(f"{folder}: there is no checkpoint {choice!r}; name 'best' or 'last'")
    newest = max(steps(folder), default=None)
    if newest is None and (folder.parent / "results.json").is_file():
        raise ConfigError(
            f"{folder.parent}: it has results but no checkpoints, as an archive of a run that is "
            "kept for reports; name the run itself"
        )
    step = newest
    if newest is not None and choice == "best":
        step = _record(folder / f"step-{newest:09d}", newest)["best_step"]
    if step is None:
        raise ConfigError(f"{folder}: the run has no {choice} checkpoint yet")
    return step


def load_choice(folder: Path, choice: str) -> dict[str, Any]:
    """Return the state of the ``best`` or the ``last`` checkpoint; errors as in the two above."""
    return load(folder, choose(folder, choice))
