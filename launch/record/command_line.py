"""The command line that launched a run, kept in ``runs/<name>/launcher/record.json``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from data_shards.system.files import write_synced
from launch.record.reading import read_json
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class CommandLine:
    """The command line that launched a run, in parts, and the job that it submitted."""

    kind: Literal["local", "slurm"]
    config: str
    """The configuration as it was given: a file or the name of a shipped one."""
    options: list[str]
    """Flags of the subcommand, with ``--name`` and ``--runs-dir``."""
    rest: list[str] = field(default_factory=list)
    """Words after ``--``."""
    cwd: str = field(default_factory=os.getcwd)
    """Folder that relative paths start from."""
    job: Annotated[str, Field(pattern=r"^[0-9]+$")] | None = None
    """Number of the SLURM job."""


_READER = TypeAdapter(CommandLine)


def command_line_path(run_folder: Path) -> Path:
    """Return the file of a run's command line."""
    return run_folder / "launcher" / "record.json"


def write_command_line(run_folder: Path, launched: CommandLine) -> None:
    """Write the command line of a run; make its folder if there is none."""
    path = command_line_path(run_folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, (json.dumps(asdict(launched), indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"runs_dir: {path} cannot be written: {error.strerror}") from None


def read_command_line(run_folder: Path) -> CommandLine | None:
    """Return the command line of a run, or None if there is no valid one."""
    try:
        return _READER.validate_python(read_json(command_line_path(run_folder)))
    except ValidationError:
        return None
