"""The folder of one run: its files, and the lock that lets one process at a time write to it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from data_shards.system.files import HeldError, hold, remove_stale, write_synced
from rebias_dist.config.files import differences, parse_yaml, to_yaml, validate
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError


class RunFolder:
    """``runs/<name>/``: config.yaml, checkpoints/, tensorboard/, logs/, metrics.jsonl, state.json,
    attempts.json, results.json, and the lock, which names the process that trains. ``initial/`` has
    initial weights that were read, if the method may need them again.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.initial = self.path / "initial"
        self.results_file = self.path / "results.json"

    @property
    def has_results(self) -> bool:
        """Return whether the run has results.json, its final figures."""
        return self.results_file.exists()

    def read_config(self, *, own_method: bool = False) -> Config:
        """Return the configuration that the run was created with.

        Raises:
            ConfigError: it is missing or not valid.
        """
        try:
            text = self.config_file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: no run here ({self.config_file.name}: {error.strerror})"
            ) from None
        values = parse_yaml(text, str(self.config_file))
        if not isinstance(values, dict):
            raise ConfigError(f"{self.config_file}: not a configuration")
        return validate(values, str(self.config_file), own_method=own_method)

    def write_config(self, config: Config) -> None:
        """Write the configuration of the run to config.yaml."""
        write_synced(self.config_file, to_yaml(config).encode())


def fresh_name(config: Config) -> str:
    """Return a name for a run without one: its method, the local time and the process id."""
    return f"{config.method.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def open_run(config: Config, resume: str, overrides: Collection[str] = ()) -> BinaryIO:
    """Create the folder of a named run, or open an existing one with the same configuration.

    Args:
        config: with a name.
        resume: ``auto``, ``never`` (the run must be new) or ``must`` (it must exist).
        overrides: keys of the configuration that may differ from those of an existing run.

    Returns:
        The lock on the folder. It is held until it is closed or the process ends in any way.

    Raises:
        ConfigError: the run exists and may not, does not exist and must, has another
            configuration, cannot be written, or another process has the lock.
    """
    assert config.name is not None
    run = RunFolder(Path(config.runs_dir) / config.name)
    exists = run.config_file.exists()
    if resume == "must" and not exists:
        raise ConfigError(f"name: no run {config.name!r} in {config.runs_dir} to resume")
    if resume == "never" and exists:
        raise ConfigError(f"name: the run {run.path} exists; choose another name, or resume it")
    if exists:
        changed = differences(run.read_config(own_method=True).identity(), config.identity())
        refuse_changes(run.path, {line.partition(": ")[0]: line for line in changed}, overrides)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = _lock(run.path / "lock")
        remove_stale(run.path)
        if not exists:
            run.write_config(config)
    except OSError as error:
        raise ConfigError(f"runs_dir: {run.path} cannot be written: {error.strerror}") from None
    return lock


def refuse_changes(run: Path, changes: Mapping[str, str], overrides: Collection[str]) -> None:
    """Refuse changes since a run was created, except those of overridden keys.

    Args:
        run: folder of the run.
        changes: 'key: old → new', by key.
        overrides: keys that may differ.

    Raises:
        ConfigError: a key has changed; the message names each one.
    """
    refused = {key: line for key, line in changes.items() if key not in overrides}
    if refused:
        flags = " ".join(f"--resume-override {key}" for key in refused)
        raise ConfigError(
            f"name: the run {run} was created with another configuration or other data "
            f"({'; '.join(refused.values())}); choose another name, or continue with {flags}"
        )


def _lock(path: Path) -> BinaryIO:
    try:
        return hold(path, "process")
    except HeldError as holder:
        raise ConfigError(
            f"name: {holder} is at work on the run {path.parent}; stop it, or choose another name"
        ) from None
