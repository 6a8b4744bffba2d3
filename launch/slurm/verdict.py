"""What a batch job does after its ranks have ended: leave, or queue once more.

Started by the batch script as ``python -m launch.slurm.verdict RUN CODES CODE``: the run's folder,
that in which the ranks have left their exit codes, and the exit code of srun. Leaves with 75 if
the job shall queue again, otherwise with the job's exit code.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from launch.record.files import read_tail
from rebias_dist.errors import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_GIVE_UP,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
)


def judge(codes: set[int], launcher: int, began: bool) -> int:
    """Return the exit code of the job; 75 stands for queueing again.

    A run that crashed queues again too: it counts its attempts itself and gives up (3) when they
    do not get any further. One that crashed before it could count them does not.

    Args:
        codes: exit codes of the ranks that left by themselves.
        launcher: exit code of srun.
        began: whether the run has noted this attempt.
    """
    for final in (EXIT_USAGE, EXIT_GIVE_UP):
        if final in codes:
            return final
    if launcher == EXIT_FINISHED:
        return EXIT_FINISHED
    if EXIT_INTERRUPTED in codes or began:
        return EXIT_INTERRUPTED
    return EXIT_USAGE if launcher == EXIT_USAGE else EXIT_FAILED


def main() -> int:
    """Judge a job, say what follows, and remove the ranks' codes."""
    run, folder, launcher = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    codes = set()
    for path in folder.iterdir():
        text = (read_tail(path, 10) or b"").strip()
        if path.name != "begun" and text.isdigit():
            codes.add(int(text))
    attempts = run / "attempts.json"
    # Both times come from the same file system, so its clock need not agree with any other.
    began = (
        attempts.exists() and attempts.stat().st_mtime_ns >= (folder / "begun").stat().st_mtime_ns
    )
    verdict = judge(codes, launcher, began)
    shutil.rmtree(folder, ignore_errors=True)
    if verdict == EXIT_INTERRUPTED:
        how = "interrupted after a save" if EXIT_INTERRUPTED in codes else "failed"
        print(f"{how}; the job queues again and goes on from the newest checkpoint", flush=True)
    return verdict


if __name__ == "__main__":
    raise SystemExit(main())
