"""The state of runs: alive, queued, ended or dead.

No daemon keeps track. Each run's folder has its last state; the kernel's table of locks shows the
processes of this machine that work on it; squeue knows the jobs.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.system.files import parse_json
from launch.record.command_line import CommandLine, read_command_line
from launch.record.jobs import job_states
from launch.record.locks import launcher_lock, lock_holder, trainer_lock
from launch.record.reading import read_state, read_tail
from rebias_dist.config.schema import RUN_NAME
from rebias_dist.errors import ConfigError

ACTIVE = ("queued", "starting", "running", "evaluating", "restarting")
_AT_WORK = ("starting", "running", "evaluating")
_ENDED = ("finished", "interrupted", "failed")
_SILENT = 120.0  # seconds without news after which a run on another machine counts as silent
# Bytes read from the end of metrics.jsonl: few at first, more if they hold no evaluation.
_METRICS_TAILS = (1 << 16, 1 << 21)


@dataclass(frozen=True)
class Run:
    """A run and its state now; None is unknown."""

    name: str
    folder: str
    status: str
    """One of ``ACTIVE``, or ``finished``, ``interrupted``, ``failed``, ``dead`` (its last state
    says that it works, but no process does), ``silent`` (the same on another machine),
    ``damaged`` (its state cannot be read) or ``new``."""
    method: str | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    images_per_s: float | None = None
    eta_seconds: float | None = None
    accuracy: float | None = None
    accuracy_of: str | None = None
    """Split that the accuracy belongs to."""
    host: str | None = None
    job: str | None = None
    launcher_pid: int | None = None
    """Process of its supervisor on this machine."""
    trainer_pid: int | None = None
    """Process of its rank 0 on this machine."""
    age_seconds: float | None = None
    """Seconds since its last state, by the wall clock."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


def run_folder(runs_dir: str, name: str) -> Path:
    """Return the folder of an existing run.

    Raises:
        ConfigError: the name could not be one, or there is no such run.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"name: {name!r} cannot name a run; use letters, digits and . _ + = - "
            "(runs in another folder are found with --runs-dir)"
        )
    folder = Path(runs_dir) / name
    if not _is_run(folder):
        raise ConfigError(f"name: no run {name!r} in {runs_dir}; 'rebias-launch list' shows them")
    return folder


def refuse_if_active(folder: Path, *, here: bool = True) -> None:
    """Refuse a run that a process or a job works on; the run need not exist yet.

    Args:
        folder: of the run.
        here: refuse for processes of this machine too, not only for jobs and other machines.

    Raises:
        ConfigError: names the process, the job or the machine.
    """
    (found,) = look_at([folder])
    holder = found.launcher_pid or found.trainer_pid
    if found.status in ACTIVE and (here or holder is None):
        # The process may belong to the job. A run that was continued by hand has an old job, which
        # is gone from the queue.
        queued = found.job is not None and found.job in (job_states([found.job]) or {})
        worker = f"process {holder}" if holder else found.host or "another machine"
        worker = f"job {found.job}" if queued else worker
        raise ConfigError(
            f"name: {worker} is at work on the run {folder} ({found.status}); stop it, or choose "
            "another name"
        )


def _is_run(folder: Path) -> bool:
    signs = ("config.yaml", "state.json", "launcher/record.json")
    try:
        if folder.is_symlink() or not folder.is_dir():
            return False
        return any((folder / sign).is_file() for sign in signs)
    except OSError:  # another user's folder that this user may not enter
        return False


def find_runs(runs_dir: str) -> list[Path]:
    """Return the folders of all runs, by name; an absent folder has none.

    Raises:
        ConfigError: the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(runs_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"--runs-dir: {runs_dir} cannot be read: {error.strerror}") from None
    folders = (Path(runs_dir) / name for name in names if RUN_NAME.fullmatch(name))
    return [folder for folder in folders if _is_run(folder)]


def look_at(folders: Iterable[Path]) -> list[Run]:
    """Return the runs in these folders with their state now."""
    found = [(folder, read_command_line(folder)) for folder in folders]
    jobs = job_states([launched.job for _, launched in found if launched and launched.job])
    return [_look_at(folder, launched, jobs) for folder, launched in found]


def _look_at(folder: Path, launched: CommandLine | None, jobs: dict[str, str] | None) -> Run:
    state = read_state(folder)
    launcher = lock_holder(launcher_lock(folder))
    trainer = lock_holder(trainer_lock(folder))
    job = launched.job if launched else None
    updated = _number(state, "updated")
    age = None if updated is None else max(0.0, time.time() - updated)
    said = str(_text(state, "status"))
    if trainer is not None:
        # An end that an earlier attempt wrote does not describe the one that has just begun.
        leaving = said in _ENDED and _number(state, "pid") == trainer
        status = said if said in _AT_WORK or leaving else "starting"
    elif launcher is not None:
        status = "restarting" if state else "starting"
    elif job is not None and jobs is not None and job in jobs:
        pending = jobs[job] in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED")
        status = "queued" if pending else said if said in _AT_WORK else "starting"
    elif said in _ENDED:
        status = said
    elif said in _AT_WORK:
        # The queue knows whether a job is alive. Without its answer, only news from another
        # machine can tell.
        elsewhere = _text(state, "host") not in (None, platform.node())
        hearsay = elsewhere and (job is None or jobs is None)
        is_fresh = age is not None and age < _SILENT
        status = "dead" if not hearsay else said if is_fresh else "silent"
    else:
        status = "damaged" if os.path.lexists(folder / "state.json") else "new"
    active = status in ACTIVE
    step, total, epoch = (_number(state, key) for key in ("step", "total_steps", "epoch"))
    accuracy, split = _accuracy(folder)
    return Run(
        name=folder.name,
        folder=str(folder),
        status=status,
        method=_text(state, "method"),
        step=None if step is None else int(step),
        total_steps=None if total is None else int(total),
        epoch=None if epoch is None else int(epoch),
        images_per_s=_number(state, "images_per_s") if active else None,
        eta_seconds=_number(state, "eta_seconds") if active else None,
        accuracy=accuracy,
        accuracy_of=split,
        host=_text(state, "host"),
        job=job,
        launcher_pid=launcher,
        trainer_pid=trainer,
        age_seconds=age,
    )


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) and abs(value) < 1e15 else None
    except OverflowError:
        return None


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    # The text goes to a terminal.
    return value[:60] if isinstance(value, str) and value.isprintable() else None


def _accuracy(folder: Path) -> tuple[float | None, str | None]:
    """Return the newest accuracy of f, or of g where there is no f, and its split."""
    for most in _METRICS_TAILS:
        tail = read_tail(folder / "metrics.jsonl", most)
        if tail is None:
            break
        for line in reversed(tail.splitlines()):
            if b'_accuracy"' not in line:
                continue
            try:
                values = parse_json(line)
            except ValueError:
                continue
            found = _accuracy_in(values) if isinstance(values, dict) else None
            if found is not None:
                return found
        if len(tail) < most:
            break
    return None, None


def _accuracy_in(values: dict[str, Any]) -> tuple[float, str] | None:
    for network in ("f", "g0"):
        ending = f"/{network}_accuracy"
        splits = [key.removesuffix(ending) for key in values if key.endswith(ending)]
        # First the main result, then the figure that chooses the checkpoint.
        order = ("unbiased", "selection")
        for split in sorted(splits, key=lambda s: order.index(s) if s in order else 2):
            number = _number(values, split + ending)
            if number is not None and split.isprintable():
                return number, split[:40]
    return None
