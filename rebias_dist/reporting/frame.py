"""The figures of runs as one pandas DataFrame, and their summary over seeds."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # importing scipy.stats would take a second

from rebias_dist.evaluation.groups import groups_of, name_of, wilson, worst_named
from rebias_dist.reporting.runs import Run, find_runs, plain, read_run
from rebias_dist.reporting.training_data import rho_of, seeds_of, settings_of
from rebias_dist.runs.results_schema import Results, Score

MEASURES = [
    "accuracy",
    "unbiased",
    "worst_group",
    "aligned",
    "conflicting",
    "follows_bias",
    "worst_class",
    "ece",
    "hsic",
]
KEYS = ["dataset", "setting", "checkpoint", "split", "network"]
_INTERNAL = ["series", "shared", "counts", "score"]


def results(runs: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return the figures of runs; see :func:`rebias_dist.results`."""
    found: list[str | Path] = []
    for pattern in [runs] if isinstance(runs, (str, Path)) else runs:
        folders = [path for path in sorted(glob.glob(str(pattern))) if Path(path).is_dir()]
        found += folders or [pattern]
    read = [read_run(folder) for folder in find_runs(found)]
    return frame_of(read).drop(columns=_INTERNAL)


def frame_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each run, checkpoint, split and network; one for a run without results.

    Beside the columns of :func:`rebias_dist.results` there are

    ``series``
        the name of a setting without its ρ;
    ``shared``
        what a run has to share with one of vanilla to be compared with it;
    ``counts``
        whether the checkpoint is the one that counts: the best, unless test data chose it;
    ``score``
        the :class:`Score` with its matrices.
    """
    first = ["run", "folder", "status", "problem", "dataset", "method", "setting", "rho", "seed"]
    scored = ["checkpoint", "chosen_on", "step", "split", "network", "samples", "correct"]
    scored += ["accuracy", "standard_error", "chance", *MEASURES[1:]]
    scored += ["worst_group_name", "groups", "select"]
    rows: list[dict[str, Any]] = []
    for run, names in zip(runs, names_of(runs), strict=True):
        about = {"run": plain(run.name), "folder": str(run.folder), "status": run.status}
        about |= {"problem": run.problem, **_settings(run), **names._asdict()}
        scores = _scores(run.results) if run.results else ()
        rows += [about | row for row in scores] or [about]
    frame = pd.DataFrame(rows)
    settings = [name for name in frame.columns if name not in {*first, *scored, *_INTERNAL}]
    frame = frame.reindex(columns=[*first, *settings, *scored, *_INTERNAL])
    setting = [frame["dataset"], frame["setting"]]
    oracle = (frame["checkpoint"] == "oracle").groupby(setting).transform("any")
    frame["counts"] = frame["checkpoint"] == np.where(oracle.eq(True), "last", "best")
    return frame


def _settings(run: Run) -> dict[str, Any]:
    if run.config is None:
        return {}
    known = run.config, run.made_with
    seed, data_seed = seeds_of(*known)
    return {
        "dataset": run.config.data.dataset,
        "method": run.config.method.name,
        "rho": rho_of(*known),
        "seed": seed,
        "data.seed": data_seed,
        **settings_of(*known),
    }


def _scores(results: Results) -> Iterator[dict[str, Any]]:
    for name, checkpoint in results.checkpoints.items():
        oracle = name == "best" and results.chosen_on == "oracle"
        for split, part in checkpoint.splits.items():
            hsic = {f"g{index}": value for index, value in enumerate(part.hsic)}
            for network, score in part.networks.items():
                error = math.sqrt(score.accuracy * (1 - score.accuracy) / part.samples)
                measures = {
                    name: getattr(score, name)
                    for name in ("accuracy", "unbiased", "follows_bias", "worst_class", "ece")
                }
                measures |= _of_bias(results, score)
                yield {
                    "checkpoint": "oracle" if oracle else name,
                    "chosen_on": results.chosen_on if name == "best" else None,
                    "select": results.select if name == "best" else None,
                    "step": checkpoint.step,
                    "split": split,
                    "network": network,
                    "samples": part.samples,
                    "correct": score.correct,
                    "standard_error": error,
                    "chance": 1 / len(results.classes),
                    **measures,
                    "hsic": hsic.get(network),
                    "score": score,
                }


def _of_bias(results: Results, score: Score) -> dict[str, Any]:
    """Return the figures of a score by its groups; those of no sample are None."""
    aligned, conflicting = results.sides(score)
    values = [plain(value, 60) for value in results.values(score)]
    classes = [plain(name, 60) for name in results.classes]
    groups = groups_of(score.bias_correct, score.bias_count, classes, values)
    worst = worst_named(groups)
    return {
        "aligned": score.on(aligned),
        "conflicting": score.on(conflicting),
        "worst_group": worst and worst["accuracy"],
        "worst_group_name": worst and name_of(worst),
        "groups": groups,
    }


class Names(NamedTuple):
    """How a run is grouped; runs on a data set with the same ``setting`` differ in their seeds."""

    setting: str | None = None
    series: str | None = None
    shared: str | None = None


def names_of(runs: Sequence[Run]) -> list[Names]:
    """Return the names of each run's groups: its method and the settings that vary within it.

    Only runs on the same data set are compared: two data sets differ in many settings, which would
    all be in the names.
    """
    datasets: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        if run.config is not None:
            datasets.setdefault(run.config.data.dataset, []).append(place)
    names = [Names() for _ in runs]
    for places in datasets.values():
        for place, name in zip(places, _of_dataset([runs[p] for p in places]), strict=True):
            names[place] = name
    return names


def _of_dataset(runs: Sequence[Run]) -> list[Names]:
    """Return the names of runs on one data set, all with a configuration."""
    settings = [settings_of(run.config, run.made_with) for run in runs if run.config]
    texts = pd.DataFrame(
        [{key: json.dumps(value) for key, value in one.items()} for one in settings]
    ).fillna("")
    alike = texts.agg("\n".join, axis=1)  # JSON has no line ends
    steps = pd.Series(
        [str(run.results.steps) if run.results else None for run in runs], dtype=object
    )
    # A run without results is counted with the seeds that it was meant to join.
    steps = steps.fillna(steps.groupby(alike).transform("first")).fillna("")
    # ρ changes the data, and so the number of steps. So steps separate series only if runs with
    # the same ρ differ in them.
    over_rho = texts.drop(columns="data.rho")
    series = over_rho.agg("\n".join, axis=1)
    several = steps.groupby(alike).transform("nunique") > 1
    over_rho["steps"] = steps.where(several.groupby(series).transform("any"), "")
    own = [key for key in texts.columns if key.startswith(("method.", "g.", "radius."))]
    shared = texts.drop(columns=own).agg("\n".join, axis=1)
    methods = texts["method.name"]
    named = zip(
        _names(methods, texts.assign(steps=steps)), _names(methods, over_rho), shared, strict=True
    )
    return [Names(*name) for name in named]


def _names(methods: pd.Series[str], texts: pd.DataFrame) -> Iterator[str]:
    varied = texts.groupby(methods.to_numpy()).transform("nunique") > 1
    for method, row, differs in zip(
        methods, texts.to_dict("records"), varied.to_dict("records"), strict=True
    ):
        parts = (f"{key} {text}" for key, text in row.items() if text and differs[key])
        yield ", ".join([json.loads(method), *parts])


class Figure(NamedTuple):
    """A measure over the seeds of a setting; accuracies are in [0, 1]."""

    values: list[float]
    mean: float
    error: float
    """Standard deviation over seeds; of one seed the binomial standard error of an accuracy."""
    low: float
    """95 %: Student's for the mean over seeds. For the accuracy of one seed it is Wilson's for
    its test samples, which knows nothing of other seeds. NaN where there is none."""
    high: float

    def text(
        self, scale: float = 100, digits: int = 1, mark: str = "", *, interval: bool = True
    ) -> str:
        """Return mean, mark and error as text; the interval on a line of its own."""
        shown = f"{scale * self.mean:.{digits}f}{mark}"
        error = "" if math.isnan(self.error) else f"{scale * self.error:.{digits}f}"
        if error:
            shown += f" ± {error}" if len(self.values) > 1 else f" ({error})"
        if interval and not math.isnan(self.low):
            shown += f"\n{scale * self.low:.{digits}f} to {scale * self.high:.{digits}f}"
        return shown


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the fields of :class:`Figure` by :data:`KEYS` and measure."""
    long = frame.melt([*KEYS, "samples"], MEASURES, "measure").dropna(subset=["value", "split"])
    long["value"] = long["value"].astype(float)
    found = over_seeds(long, [*KEYS, "measure"])
    samples = long.groupby([*KEYS, "measure"], sort=False)["samples"].first().astype(float)
    measure = found.index.get_level_values("measure")
    one = (measure == "accuracy") & (found["values"].map(len) == 1)
    p = found["mean"]
    found["error"] = found["error"].where(~one, np.sqrt(p * (1 - p) / samples))
    low, high = wilson(p, samples)
    found["low"] = found["low"].where(~one, low)
    found["high"] = found["high"].where(~one, high)
    bounded = measure != "hsic"
    found["low"] = found["low"].where(~bounded, found["low"].clip(lower=0))
    found["high"] = found["high"].where(~bounded, found["high"].clip(upper=1))
    return found


def over_seeds(long: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return values, mean, standard deviation (``error``), Student's 95 % interval."""
    values = long.groupby(by, sort=False)["value"]
    found = pd.DataFrame({"values": values.agg(list), "mean": values.mean(), "error": values.std()})
    count = values.count().to_numpy(dtype=float)
    # stdtrit of no degree of freedom is NaN.
    half = stdtrit(count - 1, 0.975) * found["error"] / np.sqrt(count)
    return found.assign(low=found["mean"] - half, high=found["mean"] + half)
