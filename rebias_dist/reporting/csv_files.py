"""The CSV files of a report."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rebias_dist.config.schema import Config
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published_figures
from rebias_dist.reporting.runs import Group, Run, plain
from rebias_dist.reporting.training_data import rho_of, seeds_of

_OF_RUNS = """dataset method setting run seed data_seed checkpoint chosen_on step split network
samples correct accuracy chance unbiased"""
_OF_SETTINGS = """dataset method setting rho source checkpoint chosen_on measure network seeds
accuracy standard_deviation low95 high95 departures_from_protocol"""


def write_runs(path: Path, groups: Iterable[Group]) -> None:
    """Write one row for each run, checkpoint, split and network; nothing averaged.

    ``unbiased`` is the mean accuracy over cells of class and texture cluster, empty for a split
    without clusters.
    """
    rows = (
        row
        for group in groups
        for run in group.runs
        for row in _run_rows(group, run, run.config or group.config)
    )
    _write(path, _OF_RUNS, rows)


def _run_rows(group: Group, run: Run, config: Config) -> Iterable[list[Any]]:
    results = run.results
    assert results is not None
    of_run = [results.dataset, results.method, group.label, run.name, *seeds_of(config)]
    for name, checkpoint in results.checkpoints.items():
        of_checkpoint = [name, results.chosen_on if name == "best" else "", checkpoint.step]
        for split, part in checkpoint.splits.items():
            for network, score in part.networks.items():
                yield [
                    *of_run,
                    *of_checkpoint,
                    split,
                    network,
                    part.samples,
                    score.correct,
                    score.accuracy,
                    1 / len(results.classes),
                    "" if score.unbiased is None else score.unbiased,
                ]


def write_settings(path: Path, groups: Sequence[Group], splits: Iterable[str]) -> None:
    """Write one row for each setting, checkpoint, split and network, then the published figures.

    The interval is Student's over seeds, or Wilson's for the test samples of a single seed, whose
    standard deviation is empty. Accuracies are in [0, 1], those published too. The measure
    ``<split>/unbiased`` is the mean over cells of class and texture cluster, of which a single
    seed has no interval.
    """
    names = list(splits)
    rows: list[list[Any]] = []
    for group in groups:
        for checkpoint in ("last", "best"):
            rows += _setting_rows(group, checkpoint, names)
    datasets = {group.config.data.dataset for group in groups}
    for p in published_figures():
        if p.dataset in datasets:
            rho = "" if p.rho is None else p.rho
            where = [p.dataset, p.method, p.label, rho, p.source, "", "", p.measure, ""]
            rows.append([*where, "", round(p.percent / 100, 6), "", "", "", ""])
    _write(path, _OF_SETTINGS, rows)


def _setting_rows(group: Group, checkpoint: str, splits: Sequence[str]) -> Iterable[list[Any]]:
    known = departures(group)
    differs = "" if known is None else len(known)
    chosen = ("oracle" if group.is_oracle else "selection") if checkpoint == "best" else ""
    dataset, method, rho = group.config.data.dataset, group.config.method.name, rho_of(group.config)
    of_group = [dataset, method, group.label, "" if rho is None else rho, "here"]
    for split in splits:
        for network in group.networks:
            for measure, figure in (
                (split, group.figure(checkpoint, split, network)),
                (f"{split}/unbiased", group.unbiased(checkpoint, split, network)),
            ):
                if figure is None:
                    continue
                seeds = len(figure.values)
                spread = figure.error if seeds > 1 else ""
                bounds = ["" if math.isnan(bound) else bound for bound in figure.interval]
                measured = [seeds, figure.mean, spread, *bounds, differs]
                yield [*of_group, checkpoint, chosen, measure, network, *measured]


def _write(path: Path, columns: str, rows: Iterable[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        for row in rows:
            writer.writerow([_safe(v) if isinstance(v, str) else v for v in row])


def _safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    shown = plain(text, 1_000)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
