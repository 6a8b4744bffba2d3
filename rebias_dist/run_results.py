"""What runs left in their folders: read with distrust, grouped over seeds, summarised with errors.

A run that is unfinished or damaged has a ``problem`` in place of results, never a figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rebias_dist.config import Config
from rebias_dist.config_files import flat, read_config_file, validate
from rebias_dist.errors import ConfigError
from rebias_dist.methods import METHODS


class _Read(BaseModel):
    """A part of ``results.json``; fields that this report does not use are passed over."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Score(_Read):
    """How one network did on one split."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    correct: Annotated[int, Field(ge=0)]


class Split(_Read):
    """One split of the test data."""

    samples: Annotated[int, Field(ge=1)]
    networks: dict[str, Score]

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        for name, score in self.networks.items():
            if abs(score.accuracy - score.correct / self.samples) > 1e-6:
                raise ValueError(
                    f"{name}: accuracy {score.accuracy} is not {score.correct} of {self.samples}"
                )
        return self


class Checkpoint(_Read):
    """The weights of one step, on every split."""

    step: Annotated[int, Field(ge=0)]
    splits: dict[str, Split]


class Results(_Read):
    """The ``results.json`` that a run writes at its end."""

    format: Literal[1]
    method: str
    dataset: str
    classes: Annotated[list[str], Field(min_length=1)]
    chosen_on: Literal["selection", "oracle"]
    steps: Annotated[int, Field(ge=0)]
    checkpoints: dict[str, Checkpoint]
    """By 'best' and 'last'."""


@dataclass(frozen=True)
class Run:
    """A run's folder: its configuration, and its results or what keeps it from having any."""

    name: str
    config: Config | None = None
    results: Results | None = None
    problem: str | None = None


@dataclass
class Group:
    """Runs of one configuration that differ in their seeds alone."""

    label: str
    config: Config
    settings: dict[str, str]
    """What they share, as texts by dotted key."""
    runs: list[Run] = field(default_factory=list)
    """Those with results, each with seeds of its own."""
    missing: int = 0
    """Those without."""

    @property
    def networks(self) -> list[str]:
        """Return the networks of the method: 'f', 'g0', …"""
        names = ["f"] if self.config.has_f else []
        return names + [f"g{i}" for i in range(len(self.config.g)) if self.config.has_g]

    @property
    def is_oracle(self) -> bool:
        """Return whether 'best' was chosen on test data."""
        return any(run.results.chosen_on == "oracle" for run in self.runs if run.results)

    def figure(self, checkpoint: str, split: str, network: str) -> Figure | None:
        """Return the accuracy over the runs, or None where no run has one."""
        found = [
            (part.networks[network].accuracy, part.samples)
            for run in self.runs
            if run.results and checkpoint in run.results.checkpoints
            for name, part in run.results.checkpoints[checkpoint].splits.items()
            if name == split and network in part.networks
        ]
        return Figure.of(*zip(*found, strict=True)) if found else None


@dataclass(frozen=True)
class Figure:
    """An accuracy in [0, 1] and its error."""

    values: tuple[float, ...]
    mean: float
    error: float
    """One run: binomial standard error sqrt(p(1-p)/n). Several: their standard deviation."""

    @classmethod
    def of(cls, values: tuple[float, ...], samples: tuple[int, ...]) -> Figure:
        """Summarise the accuracies of runs, each measured on so many samples."""
        mean = float(np.mean(values))
        if len(values) > 1:
            return cls(values, mean, float(np.std(values, ddof=1)))
        return cls(values, mean, math.sqrt(mean * (1 - mean) / samples[0]))

    def __str__(self) -> str:
        """Return percent, the error of a single run in parentheses."""
        error = f"{100 * self.error:.1f}"
        return f"{100 * self.mean:.1f} " + (f"± {error}" if len(self.values) > 1 else f"({error})")


def read_run(folder: Path) -> Run:
    """Read a run's folder; whatever is wrong with it becomes its ``problem``."""
    name, config = folder.name, None
    try:
        (folder / "config.yaml").stat()  # a missing one is no name of a shipped configuration
        config = validate(read_config_file(str(folder / "config.yaml")))
        state = json.loads((folder / "state.json").read_bytes())
        status = state.get("status") if isinstance(state, dict) else None
        if status != "finished":
            return Run(name, config, problem=f"unfinished (status {status!r})")
        results = Results.model_validate_json((folder / "results.json").read_bytes())
    except ConfigError as error:
        return Run(name, problem=f"config.yaml: {error}")
    except OSError as error:
        missing = Path(str(error.filename)).name
        return Run(name, config, problem=f"{missing}: {error.strerror}")
    except ValidationError as invalid:
        error_place = ".".join(map(str, invalid.errors()[0]["loc"]))
        reason = f"results.json: {error_place}: {invalid.errors()[0]['msg']}"
        return Run(name, config, problem=f"damaged ({reason})")
    except (ValueError, RecursionError):
        return Run(name, config, problem="damaged (state.json is not JSON)")
    if (results.method, results.dataset) != (config.method.name, config.data.dataset):
        told = f"{results.method} on {results.dataset}"
        return Run(name, config, problem=f"damaged (results.json is of {told})")
    return Run(name, config, results)


def find_runs(paths: Sequence[str]) -> list[Path]:
    """Return the runs' folders among ``paths``; a folder of runs stands for all in it."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder of a run")
        inside = sorted(p.parent for p in path.glob("*/config.yaml"))
        found += inside if inside and not (path / "config.yaml").exists() else [path]
    return list(dict.fromkeys(found))


def _settings(config: Config, results: Results | None) -> dict[str, str]:
    """Return what makes figures comparable: the settings without seeds, and the steps made."""
    settings = {key: json.dumps(value) for key, value in flat(config.identity()).items()}
    del settings["seed"], settings["data.seed"]
    return settings if results is None else {**settings, "steps": str(results.steps)}


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group runs that differ in their seeds alone; return the groups and notes on other runs."""
    groups: list[Group] = []
    notes = [f"{run.name}: {run.problem}" for run in runs if run.problem]
    # Runs without results come last, to be counted with the seeds that they were meant to join.
    for run in sorted(runs, key=lambda run: run.results is None):
        if run.config is None:
            continue
        settings = _settings(run.config, run.results)
        group = next((g for g in groups if settings.items() <= g.settings.items()), None)
        if group is None:
            group = Group(run.config.method.name, run.config, settings)
            groups.append(group)
        if run.results is None:
            group.missing += 1
        elif twin := next((r for r in group.runs if _seeds(r) == _seeds(run)), None):
            # Counting it as another seed would make the spread look smaller than it is.
            notes.append(f"{run.name}: left out, it repeats the seeds of {twin.name}")
        else:
            group.runs.append(run)
    groups.sort(key=lambda group: list(METHODS).index(group.config.method.name))
    for group in groups:
        name = group.config.method.name
        same = [g.settings for g in groups if g.config.method.name == name]
        varied = [k for k, v in group.settings.items() if any(o.get(k) != v for o in same)]
        group.label = ", ".join([name, *(f"{key} {group.settings[key]}" for key in varied)])
    return groups, notes


def _seeds(run: Run) -> tuple[int, int]:
    assert run.config is not None
    return run.config.seed, run.config.data.seed


def splits_of(groups: Iterable[Group]) -> dict[str, list[int]]:
    """Return the splits in the order in which runs have them, each with its sizes in the runs."""
    sizes: dict[str, list[int]] = {}
    for group in groups:
        for run in group.runs:
            for checkpoint in run.results.checkpoints.values() if run.results else ():
                for name, split in checkpoint.splits.items():
                    sizes.setdefault(name, []).append(split.samples)
    return sizes


def chance_of(groups: Iterable[Group]) -> float | None:
    """Return the accuracy of guessing, 1 / classes, or None where the runs disagree."""
    classes = {len(r.results.classes) for group in groups for r in group.runs if r.results}
    return 1 / classes.pop() if len(classes) == 1 else None
