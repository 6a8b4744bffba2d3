"""The CSV files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rebias_dist.evaluation.groups import wilson
from rebias_dist.reporting.comparison import Comparison
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published
from rebias_dist.reporting.runs import plain

_OF_RUNS = """dataset method setting run seed data_seed checkpoint chosen_on step split network
samples correct accuracy chance unbiased select aligned conflicting follows_bias worst_group
worst_group_name"""
_OF_GROUPS = """dataset method setting run seed data_seed checkpoint chosen_on step split network
class value samples correct accuracy low95 high95"""
_COUNTS = ["seed", "data_seed", "step", "samples", "correct"]
_OF_SETTINGS = """dataset method setting rho source checkpoint chosen_on measure network seeds
accuracy standard_deviation low95 high95 departures_from_protocol"""


def write_runs(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write one row for each run, checkpoint, split and network; nothing averaged.

    ``unbiased`` is the mean accuracy over cells of class and texture cluster, empty for a split
    without clusters. ``select`` is the figure that chose the best checkpoint.
    """
    _write(path, _rows(comparisons)[_OF_RUNS.split()], _COUNTS)


def write_groups(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write one row for each run, checkpoint, split, network and group of class and bias.

    The interval is Wilson's for the images of the group.
    """
    about = _rows(comparisons).drop(columns=["samples", "correct", "accuracy"])
    rows = about.explode("groups").dropna(subset="groups").reset_index(drop=True)
    groups = pd.DataFrame(rows["groups"].tolist(), index=rows.index)
    groups = groups.reindex(columns=["class", "value", "samples", "correct", "accuracy"])
    groups["low95"], groups["high95"] = wilson(groups["accuracy"], groups["samples"])
    _write(path, rows.join(groups)[_OF_GROUPS.split()], _COUNTS)


def _rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    frame = pd.concat([runs.frame for runs in comparisons]).dropna(subset="split")
    frame["checkpoint"] = frame["checkpoint"].replace("oracle", "best")
    return frame.rename(columns={"data.seed": "data_seed"})


def write_settings(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write one row for each setting, checkpoint, split and network, then the published figures.

    The interval is Student's over seeds, or Wilson's for the test samples of a single seed, whose
    standard deviation is empty. Accuracies are in [0, 1], those published too. The measure
    ``<split>/unbiased`` is the mean over cells of class and texture cluster, ``/worst_group``,
    ``/aligned`` and ``/conflicting`` are those of groups of class and bias; for these a single
    seed has no interval.
    """
    about = pd.DataFrame(
        {
            "setting": group.label,
            "dataset": runs.dataset,
            "method": group.config.method.name,
            "rho": group.rho,
            "departures_from_protocol": None if known is None else len(known),
            "source": "here",
        }
        for runs in comparisons
        for group in runs.groups
        for known in [departures(group)]
    )
    ours = pd.concat([runs.summary for runs in comparisons]).reset_index()
    measures = ["accuracy", "unbiased", "worst_group", "aligned", "conflicting"]
    ours = ours[ours["measure"].isin(measures)].merge(about, on=["dataset", "setting"])
    suffix = ours["measure"].map({"accuracy": "", **{key: f"/{key}" for key in measures[1:]}})
    ours = ours.assign(
        chosen_on=ours["checkpoint"].map({"best": "selection", "oracle": "oracle"}),
        checkpoint=ours["checkpoint"].replace("oracle", "best"),
        measure=ours["split"] + suffix,
        seeds=ours["values"].map(len),
        accuracy=ours["mean"],
        standard_deviation=ours["error"].where(ours["values"].map(len) > 1),
        low95=ours["low"],
        high95=ours["high"],
    )
    theirs = published()
    theirs = theirs[theirs["dataset"].isin([runs.dataset for runs in comparisons])]
    theirs = theirs.assign(accuracy=(theirs["percent"] / 100).round(6), setting=theirs["label"])
    columns = _OF_SETTINGS.split()
    # Of one type: pandas 2 warns where a column without values would decide the type.
    both = pd.concat([part.reindex(columns=columns).astype(object) for part in (ours, theirs)])
    _write(path, both, ["seeds", "departures_from_protocol"])


def _write(path: Path, frame: pd.DataFrame, counts: list[str]) -> None:
    safe = frame.map(lambda cell: _safe(cell) if isinstance(cell, str) else cell)
    safe = safe.astype(dict.fromkeys(counts, "Int64"))  # else missing counts make them floats
    safe.to_csv(path, index=False, lineterminator="\r\n")


def _safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    shown = plain(text, 1_000)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
