"""ImageNet-C in a report: a table of its own, for its 75 splits are no columns of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rebias_dist.evaluation.corruptions import BENCHMARK, SEVERITIES, corruption_figures
from rebias_dist.reporting.runs import Group, Run, plain
from rebias_dist.reporting.tables import Cell, Table, spread_cell


def corruption_table(groups: Sequence[Group]) -> Table | None:
    """Return accuracies by corruption and severity, with means; None without ImageNet-C."""
    severities = list(map(str, range(1, SEVERITIES + 1)))
    table = Table(
        "ImageNet-C: accuracy in percent by corruption and severity; the checkpoint that counts",
        ["method and setting", "net", "corruption", *severities, "mean"],
        notes=[
            "mean: over severities; in the last row over the benchmark's 15 corruptions, as far "
            "as they are there. In parentheses: corruptions that count in no other mean. "
            "Mean ± standard deviation over seeds; – : not there."
        ],
    )
    for group in groups:
        of_runs = [_figures_of(run, group.counting) for run in group.runs]
        for network in dict.fromkeys(name for figures in of_runs for name in figures):
            found = [figures[network] for figures in of_runs if network in figures]
            head = [Cell(plain(group.label, 200), kind="name"), Cell(plain(network), kind="text")]
            for name in dict.fromkeys(name for one in found for name in one["corruptions"]):
                of_name = [one["corruptions"].get(name, {}) for one in found]
                shown = name if name in BENCHMARK else f"({name})"
                table.rows.append([*head, Cell(shown, kind="text"), *_cells(of_name, severities)])
            counts = " or ".join(map(str, sorted({one["splits"] for one in found})))
            shown = f"mean of {counts} of {len(BENCHMARK) * SEVERITIES} splits"
            table.rows.append([*head, Cell(shown, kind="text"), *_cells(found, severities)])
    return table if table.rows else None


def _cells(found: Sequence[Mapping[str, Any]], severities: Sequence[str]) -> list[Cell]:
    by_severity = [one.get("severities", {}) for one in found]
    columns = [[one.get(severity) for one in by_severity] for severity in severities]
    return [spread_cell(values, 100) for values in (*columns, [one.get("mean") for one in found])]


def _figures_of(run: Run, checkpoint: str) -> dict[str, Any]:
    if run.results is None or run.config is None or checkpoint not in run.results.checkpoints:
        return {}
    folders = run.config.data.other_tests
    return corruption_figures(
        {
            name: {
                "split": name,
                "folder": folders.get(name, ""),
                "networks": {
                    network: {"accuracy": score.accuracy}
                    for network, score in split.networks.items()
                },
            }
            for name, split in run.results.checkpoints[checkpoint].splits.items()
        }
    )
