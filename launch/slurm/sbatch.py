"""Batch scripts: rendered from templates with checked values, submitted as argument lists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from rebias_dist.errors import ConfigError, RebiasError

# What means nothing to bash, to a directive line, or to SLURM in a file name (% does).
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._+=@,/-]*")
_TIMEOUT = 120.0  # seconds for an answer of SLURM


def safe_path(path: Path, what: str, *, resolve: bool = True) -> Path:
    """Return a path made absolute, or raise ``ConfigError`` if a batch script could not hold it."""
    full = path.resolve() if resolve else path.absolute()
    if not _SAFE_PATH.fullmatch(str(full)):
        raise ConfigError(
            f"{what}: {str(full)!r} cannot stand in a batch script; use a path of letters, "
            "digits and . _ + = @ , - /"
        )
    return full


def check_words(words: Sequence[str]) -> list[str]:
    """Return arguments for sbatch, or raise ``ConfigError``: they are options, of one line each."""
    for word in words:
        if not word.isprintable() or not word.startswith("-"):
            raise ConfigError(
                f"--: {word!r} is no option for sbatch; write each as one word, --option=value"
            )
        if re.match(r"--(wrap|array|output|error|open-mode|no-requeue)(=|$)|-[aoe]", word):
            raise ConfigError(f"--: {word!r} is decided by the script")
    return list(words)


def resource_lines(options: Mapping[str, str | None]) -> str:
    """Return the options that are set as directive lines."""
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return "\n".join(lines) or "#"


def render(template: str, **values: str) -> str:
    """Return a template of this package with its ``@NAMES@`` replaced; values must be checked."""
    text = resources.files("launch").joinpath(template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def submit(words: Sequence[str]) -> str:
    """Run sbatch with these arguments and return the number of the job.

    Raises:
        ConfigError: there is no SLURM here, or it refuses the job.
    """
    said = _slurm(["sbatch", "--parsable", *words])
    job = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
    if not job.isdigit():
        raise RebiasError(f"sbatch answered {said!r} instead of a job's number")
    return job


def _slurm(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]}: not found; is this a login node of a cluster?") from None
    except subprocess.TimeoutExpired:
        raise RebiasError(f"{command[0]}: no answer within {_TIMEOUT:g} s") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError(f"{command[0]}: {reason}")
    return done.stdout
