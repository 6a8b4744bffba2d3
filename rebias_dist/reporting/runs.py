"""What runs left in their folders: read with distrust, grouped over seeds, summarised with errors.

A run that is unfinished or damaged has a ``problem`` in place of results, never a figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data_shards.errors import DataShardsError
from data_shards.files import open_regular
from rebias_dist.config.files import flat, read_config_file, validate
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.methods.registry import METHODS
from rebias_dist.reporting.training_data import data_settings, seeds_of
from rebias_dist.runs.results_schema import Results, Score

_LARGEST = 256 << 20  # bytes of a results.json: a confusion of 1,000 classes takes some MB


@dataclass(frozen=True)
class Run:
    """A run's folder: its configuration, and its results or what keeps it from having any."""

    name: str
    config: Config | None = None
    results: Results | None = None
    problem: str | None = None
    folder: Path = Path()


@dataclass
class Group:
    """Runs of one configuration that differ in their seeds alone."""

    label: str
    config: Config
    settings: dict[str, str]
    """What they share, as texts by dotted key."""
    runs: list[Run] = field(default_factory=list)
    """Those with results, each with seeds of its own."""
    without: list[Run] = field(default_factory=list)
    """Those without."""

    @property
    def missing(self) -> int:
        """Return the number of runs without results."""
        return len(self.without)

    def seeds(self, checkpoint: str) -> str:
        """Return how many runs have figures of a checkpoint, as ``3``, or ``2 of 3``."""
        there = sum(checkpoint in run.results.checkpoints for run in self.runs if run.results)
        total = len(self.runs) + self.missing
        return str(there) if there == total else f"{there} of {total}"

    @property
    def networks(self) -> list[str]:
        """Return the networks of the method: 'f', 'g0', …"""
        names = ["f"] if self.config.has_f else []
        return names + [f"g{i}" for i in range(len(self.config.g)) if self.config.has_g]

    @property
    def is_oracle(self) -> bool:
        """Return whether 'best' was chosen on test data."""
        return any(run.results.chosen_on == "oracle" for run in self.runs if run.results)

    @property
    def counting(self) -> str:
        """Return the checkpoint that counts: the best, unless test data chose it."""
        return "last" if self.is_oracle else "best"

    def figure(self, checkpoint: str, split: str, network: str) -> Figure | None:
        """Return the accuracy over the runs, or None where no run has one."""
        found = [
            (score.accuracy, samples)
            for _, score, samples in self.scores(checkpoint, split, network)
        ]
        return Figure.of(*zip(*found, strict=True)) if found else None

    def unbiased(self, checkpoint: str, split: str, network: str) -> Figure | None:
        """Return the accuracy over cells of class and texture, None where no run has one."""
        scores = self.scores(checkpoint, split, network)
        values = tuple(s.unbiased for _, s, _ in scores if s.unbiased is not None)
        if len(values) == 1:  # a mean over cells has no binomial error
            return Figure(values, values[0], math.nan, (math.nan, math.nan))
        return Figure.of(values, ()) if values else None

    def scores(self, checkpoint: str, split: str, network: str) -> list[tuple[Run, Score, int]]:
        """Return the score of each run that has one, with the number of samples."""
        return [
            (run, part.networks[network], part.samples)
            for run in self.runs
            if run.results and checkpoint in run.results.checkpoints
            for name, part in run.results.checkpoints[checkpoint].splits.items()
            if name == split and network in part.networks
        ]

    def hsic(self, checkpoint: str, split: str, g: int) -> list[float]:
        """Return HSIC between the features of f and a g, of each run that tells it."""
        found = [
            run.results.checkpoints[checkpoint].splits[split].hsic[g : g + 1]
            for run, _, _ in self.scores(checkpoint, split, f"g{g}")
            if run.results
        ]
        return [value for values in found for value in values if value is not None]


@dataclass(frozen=True)
class Figure:
    """An accuracy in [0, 1] and its error."""

    values: tuple[float, ...]
    mean: float
    error: float
    """One run: binomial standard error sqrt(p(1-p)/n), NaN where there is none. Several: their
    standard deviation."""
    interval: tuple[float, float]
    """95 %. One run: Wilson's for its test samples, which knows nothing of other seeds. Several:
    Student's for the mean over seeds, cut to [0, 1]."""

    @classmethod
    def of(cls, values: tuple[float, ...], samples: tuple[int, ...]) -> Figure:
        """Summarise the accuracies of runs, each measured on so many samples."""
        mean = float(np.mean(values))
        if len(values) > 1:
            spread = float(np.std(values, ddof=1))
            low, high = student(values)
            return cls(values, mean, spread, (max(0.0, low), min(1.0, high)))
        error = math.sqrt(mean * (1 - mean) / samples[0])
        return cls(values, mean, error, _wilson(mean, samples[0]))

    def __str__(self) -> str:
        """Return percent, the error of a single run in parentheses."""
        if math.isnan(self.error):
            return f"{100 * self.mean:.1f}"
        error = f"{100 * self.error:.1f}"
        return f"{100 * self.mean:.1f} " + (f"± {error}" if len(self.values) > 1 else f"({error})")


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval for the mean of at least two values."""
    from scipy.special import stdtrit  # importing scipy.stats would take a second

    n = len(values)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def _wilson(p: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share p of n samples."""
    z2 = 1.959963984540054**2
    centre, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n)
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def read_run(folder: Path) -> Run:
    """Read a run's folder; whatever is wrong with it becomes its ``problem``."""
    # The folder may be given as '.' or end in '..'.
    name, config = folder.resolve().name, None

    def without(problem: str) -> Run:
        # Names, values and messages come from files that anyone may have written.
        return Run(name, config, problem=plain(problem, 300), folder=folder)

    try:
        (folder / "config.yaml").stat()  # a missing one is no name of a shipped configuration
    except FileNotFoundError:
        return without("no run here (config.yaml: No such file or directory)")
    except OSError as error:
        return without(f"config.yaml: {error.strerror}")
    try:
        config = validate(read_config_file(str(folder / "config.yaml")))
        state = json.loads(_read(folder / "state.json"))
        status = state.get("status") if isinstance(state, dict) else None
        if status != "finished":
            return without(f"unfinished (status {status!r})")
        results = Results.model_validate_json(_read(folder / "results.json"))
    except ConfigError as error:
        return without(f"config.yaml: {error}")
    except OSError as error:
        return without(f"{Path(str(error.filename)).name}: {error.strerror}")
    except DataShardsError as error:
        return without(str(error))
    except ValidationError as invalid:
        error_place = ".".join(map(str, invalid.errors()[0]["loc"]))
        return without(f"damaged (results.json: {error_place}: {invalid.errors()[0]['msg']})")
    except (ValueError, RecursionError):
        return without("damaged (state.json is not JSON)")
    if (results.method, results.dataset) != (config.method.name, config.data.dataset):
        told = f"{results.method} on {results.dataset}"
        return without(f"damaged (results.json is of {told})")
    if not any(c.splits for c in results.checkpoints.values()):
        return without("finished without test figures")
    return Run(name, config, results, folder=folder)


def _read(path: Path) -> bytes:
    path.stat()  # a missing file is told by its OSError, which names it
    with open_regular(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataShardsError(f"{path.name}: larger than {_LARGEST >> 20} MB, no run writes that")
    return content


def plain(text: object, longest: int = 120) -> str:
    """Return text of unknown origin as one line that is safe on a terminal and in a file.

    Control characters, line ends and what has no UTF-8 become '\ufffd'; the rest beyond
    ``longest`` characters becomes '…'.
    """
    shown = "".join(c if c.isprintable() else "\ufffd" for c in str(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


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
    """Return what makes figures comparable: settings without seeds, the data, the steps made."""
    settings = {key: json.dumps(value) for key, value in flat(config.identity()).items()}
    settings |= data_settings(config)
    del settings["seed"], settings["data.seed"]
    return settings if results is None else {**settings, "steps": str(results.steps)}


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group runs that differ in their seeds alone; return the groups and notes on other runs."""
    groups: list[Group] = []
    notes = [f"{plain(run.name)}: {run.problem}" for run in runs if run.problem]
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
            group.without.append(run)
        elif twin := next((r for r in group.runs if _seeds(r) == _seeds(run)), None):
            # Counting it as another seed would make the spread look smaller than it is.
            repeated = f"it repeats the seeds of {plain(twin.name)}"
            notes.append(f"{plain(run.name)}: left out, {repeated}")
        else:
            group.runs.append(run)
    groups.sort(key=lambda group: list(METHODS).index(group.config.method.name))
    for group in groups:
        name = group.config.method.name
        same = [g.settings for g in groups if g.config.method.name == name]
        varied = [k for k, v in group.settings.items() if any(o.get(k) != v for o in same)]
        group.label = ", ".join([name, *(f"{key} {plain(group.settings[key])}" for key in varied)])
    return groups, notes


def _seeds(run: Run) -> tuple[int, int]:
    assert run.config is not None
    return seeds_of(run.config)


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
