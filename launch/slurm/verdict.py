"""Decides what a batch job does after the end of its ranks: leave, or queue again.

The batch script starts it as ``python -m launch.slurm.verdict RUN CODES CODE``. RUN is the run's
folder, CODES is the folder with the exit codes of the ranks, and CODE is the exit code of srun. The
verdict is its own exit code: 75 if the job queues again, otherwise the job's exit code.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from data_shards.system.streams import run_command
from launch.record.exit_codes import final_code, read_codes
from rebias_dist.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE


def judge(codes: set[int], launcher: int, began: bool) -> int:
    """Return the exit code of the job; 75 means that it queues again.

    A run that crashed queues again too: the run counts its attempts and gives up (3) when they
    make no progress. A run that crashed before it could count the attempt does not queue again.

    Args:
        codes: exit codes of the ranks that were not killed.
        launcher: exit code of srun.
        began: whether the run has noted this attempt.
    """
    final = final_code(codes, launcher)
    if final is not None:
        return final
    if EXIT_INTERRUPTED in codes or began:
        return EXIT_INTERRUPTED
    return EXIT_USAGE if launcher == EXIT_USAGE else EXIT_FAILED


def main() -> int:
    """Judge a job, print what follows, and remove the ranks' codes."""
    run, folder, launcher = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    codes = set(read_codes(folder).values())
    attempts = run / "attempts.json"
    # Both times come from the same file system, so only its own clock counts.
    job_began = (folder / "begun").stat().st_mtime_ns
    began = attempts.exists() and attempts.stat().st_mtime_ns >= job_began
    verdict = judge(codes, launcher, began)
    shutil.rmtree(folder, ignore_errors=True)
    if verdict == EXIT_INTERRUPTED:
        how = "interrupted after a save" if EXIT_INTERRUPTED in codes else "failed"
        print(f"{how}; the job queues again and goes on from the newest checkpoint", flush=True)
    return verdict


if __name__ == "__main__":
    raise SystemExit(run_command("rebias-launch", main))
