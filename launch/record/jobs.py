"""Commands of a scheduler: SLURM's and kubectl; the states of SLURM's jobs, and their end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from rebias_dist.errors import ConfigError, RebiasError


def ask_scheduler(*command: str, timeout: float = 20.0, given: str | None = None) -> str:
    """Run a command of a scheduler and return what it prints.

    Args:
        command: the program and its arguments.
        timeout: seconds to wait for the answer.
        given: its standard input; None for that of this process.

    Raises:
        ConfigError: the command is not there, or the scheduler refuses it.
        RebiasError: it does not answer.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RebiasError(f"{command[0]}: no answer within {timeout:g} s") from None
    except OSError:
        raise ConfigError(f"{command[0]}: not found; is this a login node of a cluster?") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError(f"{command[0]}: {reason}")
    return done.stdout


def job_states(jobs: Sequence[str]) -> dict[str, str] | None:
    """Return the states (PENDING, RUNNING ...) of those jobs that are in the queue.

    None where there is no SLURM or it does not answer: then only the runs' own files are known.
    """
    if not jobs:
        return None
    try:
        # Ask for all jobs of the user: --jobs with a job that SLURM has forgotten is an error.
        lines = ask_scheduler("squeue", "--me", "--noheader", "--format=%A %T").splitlines()
    except RebiasError:
        return None
    found = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    return {job: found[job] for job in jobs if job in found}


def cancel(job: str) -> None:
    """Ask SLURM to end a job; its ranks get SIGTERM, and are killed after SLURM's KillWait."""
    try:
        ask_scheduler("scancel", job)
    except RebiasError as error:
        raise RebiasError(f"job {job}: {error}") from None
