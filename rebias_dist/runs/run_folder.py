"""The folder of one run: what lies where, and that one process at a time writes to it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from data_shards.files import HeldError, hold, write_synced
from rebias_dist.config.files import differences, parse_yaml, to_yaml, validate
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError


class RunFolder:
    """``runs/<name>/``: config.yaml, checkpoints/, tensorboard/, logs/, metrics.jsonl, state.json,
    results.json and the lock of who is at work on it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.results_file = self.path / "results.json"

    @property
    def has_results(self) -> bool:
        """Return whether the run has its final figures."""
        return self.results_file.exists()

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

    def write_config(self, config: Config) -> None:
        """Write down the configuration of the run."""
        write_synced(self.config_file, to_yaml(config).encode())


def fresh_name(config: Config) -> str:
    """Return a name for a run that was given none: its method and the time."""
    return f"{config.method.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def open_run(config: Config, resume: str, overrides: Collection[str] = ()) -> BinaryIO:
    """Create the folder of a named run, or open an existing one whose configuration agrees.

    Args:
        config: with a name.
        resume: ``auto``, ``never`` (the run must be new) or ``must`` (it must exist).
        overrides: keys of the configuration that may differ from those of an existing run.

    Returns:
        The lock on the folder, held until it is closed or the process ends, however it ends.

    Raises:
        ConfigError: the run exists and may not, or the reverse, another one has its name, or
            another process is at work on it.
    """
    assert config.name is not None
    run = RunFolder(Path(config.runs_dir) / config.name)
    exists = run.config_file.exists()
    if resume == "must" and not exists:
        raise ConfigError(f"name: no run {config.name!r} in {config.runs_dir} to resume")
    if resume == "never" and exists:
        raise ConfigError(f"name: the run {run.path} exists; choose another name, or let it resume")
    if exists:
        changed = differences(run.read_config().identity(), config.identity())
        refuse_changes(run.path, {line.partition(": ")[0]: line for line in changed}, overrides)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = _lock(run.path / "lock")
        if not exists:
            run.write_config(config)
    except OSError as error:
        raise ConfigError(f"runs_dir: {run.path} cannot be written: {error.strerror}") from None
    return lock


def refuse_changes(run: Path, changes: Mapping[str, str], overrides: Collection[str]) -> None:
    """Refuse what has changed since a run was created and is not overridden, key by key.

    Args:
        run: folder of the run.
        changes: 'key: old → new', by key.
        overrides: keys that may differ.

    Raises:
        ConfigError: names each difference.
    """
    refused = {key: line for key, line in changes.items() if key not in overrides}
    if refused:
        flags = " ".join(f"--resume-override {key}" for key in refused)
        raise ConfigError(
            f"name: the run {run} was created with another configuration or other data "
            f"({'; '.join(refused.values())}); choose another name, or go on with {flags}"
        )


def _lock(path: Path) -> BinaryIO:
    try:
        return hold(path, "process")
    except HeldError as holder:
        raise ConfigError(
            f"name: {holder} is at work on the run {path.parent}; stop it, or choose another name"
        ) from None
