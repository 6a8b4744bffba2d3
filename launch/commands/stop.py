"""Ask a run to save and leave; kill it if it does not in time.

A run under SLURM is cancelled. Then SLURM decides how much time it has.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from launch.commands.common import add_name
from launch.record.jobs import cancel, job_states
from launch.record.locks import launcher_lock, lock_holder, signal_holder, trainer_lock
from launch.record.runs import ACTIVE, look_at, run_folder
from rebias_dist.errors import EXIT_FINISHED, ConfigError, RebiasError

EXAMPLES = """
rebias-launch stop first
rebias-launch stop first --timeout 30
"""

_LOOK = 0.2  # seconds
_KILLED = 30.0  # seconds that a killed run has to disappear in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stop``."""
    add_name(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=150.0,
        metavar="SECONDS",
        help="time to save and leave in, before it is killed [150]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Stop a run."""
    if not arguments.timeout >= 0:
        raise ConfigError(f"--timeout: {arguments.timeout} is no time; use 0 or more seconds")
    folder = run_folder(arguments.runs_dir, arguments.name)
    (found,) = look_at([folder])
    if found.status not in ACTIVE:
        print(f"{found.name}: not at work ({found.status})")
        return EXIT_FINISHED
    if found.job is not None and found.job in (job_states([found.job]) or {}):
        # If only the ranks were asked to leave, the job would queue again.
        _stop_job(found.name, found.job, arguments.timeout)
        # The job may leave the queue before the last of its processes ends. A process that is
        # still alive after that was not started by the job.
        if _is_free(folder, _KILLED):
            return EXIT_FINISHED
        (found,) = look_at([folder])
    if found.launcher_pid is None and found.trainer_pid is None:
        raise ConfigError(f"{found.name}: runs on {found.host}; stop it there")
    # A launcher tells its ranks and does not restart them. Without a launcher, rank 0 tells the
    # other ranks.
    lock = launcher_lock(folder) if found.launcher_pid is not None else trainer_lock(folder)
    print(f"{found.name}: asked to save and leave", flush=True)
    signal_holder(lock, signal.SIGTERM)
    if not _is_free(folder, arguments.timeout):
        print(f"{found.name}: has not left within {arguments.timeout:g} s; killed", flush=True)
        # The ranks die with their launcher.
        signal_holder(lock, signal.SIGKILL)
        if not _is_free(folder, _KILLED):
            raise RebiasError(f"{found.name}: one of its processes cannot be killed")
    (found,) = look_at([folder])
    print(f"{found.name}: {found.status}")
    return EXIT_FINISHED


def _is_free(folder: Path, seconds: float) -> bool:
    """Wait until no process works on the run; return whether that happened in time."""
    deadline = time.monotonic() + seconds
    while any(lock_holder(lock(folder)) for lock in (launcher_lock, trainer_lock)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


def _stop_job(name: str, job: str, timeout: float) -> None:
    cancel(job)
    print(f"{name}: job {job} is cancelled", flush=True)
    deadline = time.monotonic() + timeout
    # If the queue does not answer, the job may still be there.
    while (known := job_states([job])) is None or job in known:
        if time.monotonic() > deadline:
            raise RebiasError(f"job {job}: still in the queue after {timeout:g} s; see squeue")
        time.sleep(1.0)
