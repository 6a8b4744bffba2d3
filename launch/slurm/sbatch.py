"""Batch scripts: made from templates and checked values, submitted as argument lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from launch.record.jobs import ask_scheduler
from rebias_dist.errors import ConfigError, RebiasError

# Signs without a meaning to bash, in a directive line, or to SLURM in a file name (% has one).
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._+=@,/-]*")

SCRIPTS = Path(__file__).parents[1]
"""Folder of the templates, of array.sbatch and of env.sh."""


def safe_path(path: Path, what: str, *, resolve: bool = True) -> Path:
    """Return a path made absolute, or raise ``ConfigError`` if no batch script can contain it."""
    full = path.resolve() if resolve else path.absolute()
    if not _SAFE_PATH.fullmatch(str(full)):
        raise ConfigError(
            f"{what}: {str(full)!r} cannot stand in a batch script; use a path of letters, "
            "digits and . _ + = @ , - /"
        )
    return full


def check_words(words: Sequence[str]) -> list[str]:
    """Return options for sbatch, or raise ``ConfigError`` unless each is one word on one line."""
    for word in words:
        if not word.isprintable() or not word.startswith("-"):
            raise ConfigError(
                f"--: {word!r} is not an option for sbatch; write each as one word, --option=value"
            )
        if re.match(r"--(wrap|array|output|error|open-mode|no-requeue)(=|$)|-[aoe]", word):
            raise ConfigError(f"--: {word!r} is set by the script; leave it out")
    return list(words)


def env_file(given: Path | None) -> Path:
    """Return the file that a job reads first: the given one, or the one that comes with launch."""
    path = (given or SCRIPTS / "env.sh").absolute()
    if not path.is_file():
        raise ConfigError(f"--env: {path} is not a file")
    return path


def render(template: str, **values: str) -> str:
    """Return a template with its ``@NAMES@`` replaced by values, which must have been checked."""
    text = (SCRIPTS / template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda name: values[name[1]], text)


def submit(words: Sequence[str]) -> str:
    """Run sbatch with these arguments and return the number of the job.

    Raises:
        ConfigError: there is no SLURM here, or it refuses the job.
        RebiasError: it does not answer, or not with a number.
    """
    said = ask_scheduler("sbatch", "--parsable", *words, timeout=120.0)
    job = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
    if not job.isdigit():
        raise RebiasError(f"sbatch answered {said!r} instead of a job's number")
    return job
