"""The folder of one run: what lies where, and who may write to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from data_shards.files import write_synced
from rebias_dist.config import Config
from rebias_dist.config_files import differences, parse_yaml, to_yaml, validate
from rebias_dist.errors import ConfigError


class RunFolder:
    """``runs/<name>/``: config.yaml, checkpoints/, tensorboard/, logs/, metrics.jsonl, state.json,
    results.json.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.results_file = self.path / "results.json"
        self.state_file = self.path / "state.json"

    def read_config(self) -> Config:
        """Return the configuration that the run was created with."""
        try:
            text = self.config_file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: no run here ({self.config_file.name}: {error.strerror})"
            ) from None
        values = parse_yaml(text, str(self.config_file))
        if not isinstance(values, dict):
            raise ConfigError(f"{self.config_file}: not a configuration")
        return validate(values, str(self.config_file))


def fresh_name(config: Config) -> str:
    """Return a name for a run that was given none: its method and the time."""
    return f"{config.method.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def open_run(config: Config, resume: str) -> RunFolder:
    """Create the folder of a named run, or open an existing one whose configuration agrees.

    Args:
        config: with a name.
        resume: ``auto``, ``never`` (the run must be new) or ``must`` (it must exist).

    Raises:
        ConfigError: the run exists and may not, or the reverse, or another one has its name.
    """
    assert config.name is not None
    run = RunFolder(Path(config.runs_dir) / config.name)
    if not run.config_file.exists():
        if resume == "must":
            raise ConfigError(f"name: no run {config.name!r} in {config.runs_dir} to resume")
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            write_synced(run.config_file, to_yaml(config).encode())
        except OSError as error:
            raise ConfigError(f"runs_dir: {run.path} cannot be written: {error.strerror}") from None
        return run
    if resume == "never":
        raise ConfigError(f"name: the run {run.path} exists; choose another name, or let it resume")
    changed = differences(run.read_config().identity(), config.identity())
    if changed:
        raise ConfigError(
            f"name: the run {run.path} was created with another configuration "
            f"({'; '.join(changed)}); choose another name"
        )
    return run
