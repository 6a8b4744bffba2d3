"""What SLURM says of jobs, where there is a SLURM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from rebias_dist.errors import RebiasError

_TIMEOUT = 20.0  # seconds for an answer


def job_states(jobs: Sequence[str]) -> dict[str, str] | None:
    """Return the states (PENDING, RUNNING ...) of those jobs that the queue still knows.

    None where there is no SLURM or it does not answer: then the runs' own files have to do.
    """
    if not jobs or shutil.which("squeue") is None:
        return None
    # All of the user's jobs: with --jobs, one that is long forgotten would be an error.
    command = ["squeue", "--me", "--noheader", "--format=%A %T"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.split()[:2] for line in asked.stdout.splitlines() if len(line.split()) >= 2)
    return {job: found[job] for job in jobs if job in found}


def cancel(job: str) -> None:
    """Ask SLURM to end a job; its ranks get SIGTERM, and are killed after SLURM's KillWait."""
    try:
        subprocess.run(
            ["scancel", job], capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        said = next(iter(error.stderr.strip().splitlines()), "no reason given")
        raise RebiasError(f"job {job}: scancel refuses: {said}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise RebiasError(f"job {job}: scancel does not answer ({error})") from None
