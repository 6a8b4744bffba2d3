"""A sweep as SLURM jobs: an array of the unfinished cells, then a job for the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.slurm.sbatch import SCRIPTS, check_words, env_file, safe_path, submit
from rebias_dist.errors import ConfigError


def submit_sweep(
    words: Sequence[str],
    numbers: Sequence[int],
    *,
    logs: Path,
    name: str,
    at_once: int | None,
    env: Path | None,
    rest: Sequence[str],
) -> tuple[str, str]:
    """Submit the cells, and a job that writes the table after their end.

    Args:
        words: arguments of the interpreter that run the sweep, without options for SLURM.
        numbers: of the cells, from 1.
        logs: folder of the jobs' output.
        name: of the sweep.
        at_once: tasks that may run at a time; None for all.
        env: file that a job reads first; None for the one that comes with ``launch``.
        rest: options for sbatch.

    Returns:
        The numbers of the two jobs.

    Raises:
        ConfigError: a value is not possible in a batch job, or SLURM refuses the job.
    """
    folder = safe_path(logs, "--runs-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    options = check_words(rest)
    # sbatch copies the script, but the job reads the other file when it starts.
    script = [str(SCRIPTS / "array.sbatch"), str(env_file(env)), sys.executable, *words]
    tasks = ",".join(map(str, numbers)) + ("" if at_once is None else f"%{at_once}")
    cells = submit(
        [
            *options,
            f"--array={tasks}",
            f"--job-name={name}",
            f"--output={folder}/slurm-%A_%a.out",
            *script,
            "--cell",
            "%i",
        ]
    )
    table = submit(
        [
            *options,
            f"--dependency=afterany:{cells}",
            f"--job-name={name}-table",
            f"--output={folder}/slurm-%j-table.out",
            *script,
            "--table",
        ]
    )
    return cells, table
