"""Commands of SLURM, where there is a SLURM: the states of jobs, and their end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from rebias_dist.errors import ConfigError, RebiasError


def ask_slurm(*command: str, timeout: float = 20.0) -> str:
    """Run a command of SLURM and return what it prints.

    Args:
        command: the program and its arguments.
        timeout: seconds to wait for the answer.

    Raises:
        ConfigError: there is no SLURM here, or it refuses the command.
        RebiasError: it does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
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
        lines = ask_slurm("squeue", "--me", "--noheader", "--format=%A %T").splitlines()
    except RebiasError:
        return None
    found = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    return {job: found[job] for job in jobs if job in found}


def cancel(job: str) -> None:
    """Ask SLURM to end a job; its ranks get SIGTERM, and are killed after SLURM's KillWait."""
    try:
        ask_slurm("scancel", job)
    except RebiasError as error:
        raise RebiasError(f"job {job}: {error}") from None
