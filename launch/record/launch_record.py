"""How a run was launched: ``runs/<name>/launcher/record.json``, from which it can be resumed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.files import write_synced
from launch.record.files import read_json
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """The command line that launched a run, taken apart, and the job that came of it."""

    kind: Literal["local", "slurm"]
    config: str
    """The configuration as it was given: a file or a shipped one's name."""
    options: list[str]
    """Flags of the subcommand, ``--name`` and ``--runs-dir`` among them."""
    rest: list[str] = field(default_factory=list)
    """What followed ``--``."""
    cwd: str = field(default_factory=os.getcwd)
    """Folder that relative paths start from."""
    job: str | None = None
    """Number of the SLURM job."""

    def arguments(self, run_folder: Path) -> list[str]:
        """Return the words after ``rebias-launch`` that launch the run again.

        The configuration that lies in the run's folder comes before the given file, which may
        have been changed or removed since.
        """
        kept = run_folder / "config.yaml"
        config = str(kept.absolute()) if kept.is_file() else self.config
        return [self.kind, config, *self.options, *(["--", *self.rest] if self.rest else [])]


def record_path(run_folder: Path) -> Path:
    """Return where a run's record lies."""
    return run_folder / "launcher" / "record.json"


def write_record(run_folder: Path, record: Record) -> None:
    """Write the record of a run, whose folder is made if need be."""
    path = record_path(run_folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, (json.dumps(asdict(record), indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"runs_dir: {path} cannot be written: {error.strerror}") from None


def read_record(run_folder: Path) -> Record | None:
    """Return the record of a run; None if there is none, or none that holds together."""
    return _checked(read_json(record_path(run_folder)))


def _checked(values: dict[str, Any] | None) -> Record | None:
    if values is None or values.get("kind") not in ("local", "slurm"):
        return None
    texts = [values.get("config"), values.get("cwd")]
    lists = [values.get("options"), values.get("rest")]
    job = values.get("job")
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(words, list) for words in lists)
        and all(isinstance(word, str) for words in lists if words for word in words)
        and (job is None or (isinstance(job, str) and job.isdigit()))
    ):
        return None
    return Record(**{key: values[key] for key in Record.__dataclass_fields__ if key in values})
