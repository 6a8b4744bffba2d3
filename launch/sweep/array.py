"""A sweep as an array of SLURM jobs: each unfinished cell a task, and a last job for the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from launch.slurm.sbatch import check_words, safe_path, submit
from rebias_dist.errors import ConfigError


def array_of(numbers: Sequence[int]) -> str:
    """Return ascending numbers as sbatch takes them: ``1-3,7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ",".join("-".join(map(str, span)) for span in spans)


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
    """Submit the cells, and behind them the job that writes the table.

    Args:
        words: for the interpreter: the sweep's command, without options for SLURM.
        numbers: of the cells, from 1.
        logs: folder of the jobs' output.
        name: of the sweep.
        at_once: tasks that may run at a time; None for all.
        env: file that a job reads before it starts; None for the one that comes with ``launch``.
        rest: options for sbatch.

    Returns:
        The numbers of the two jobs.

    Raises:
        ConfigError: a value that a batch job cannot have, or SLURM refuses it.
    """
    folder = safe_path(logs, "--runs-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
    with (
        resources.as_file(resources.files("launch").joinpath("array.sbatch")) as template,
        resources.as_file(resources.files("launch").joinpath("env.sh")) as standard,
    ):
        file = standard if env is None else env
        if not file.is_file():
            raise ConfigError(f"--env: {file} is not a file")
        # sbatch copies the script, but the job reads the other file when it starts.
        job = [str(template), str(file.absolute()), sys.executable]
        limit = "" if at_once is None else f"%{at_once}"
        cells = submit(
            [
                *check_words(rest),
                f"--array={array_of(numbers)}{limit}",
                f"--job-name={name}",
                f"--output={folder}/slurm-%A_%a.out",
                *(*job, *words, "--cell", "%i"),
            ]
        )
        table = submit(
            [
                *check_words(rest),
                f"--dependency=afterany:{cells}",
                f"--job-name={name}-table",
                f"--output={folder}/slurm-%j-table.out",
                *(*job, *words, "--table"),
            ]
        )
    return cells, table
