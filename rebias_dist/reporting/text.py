"""The tables of a report for the terminal."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

from rebias_dist.reporting.comparison import MARK_NOTE, Comparison, Group
from rebias_dist.reporting.protocol import PROTOCOLS, departures
from rebias_dist.reporting.published import published
from rebias_dist.reporting.runs import plain
from rebias_dist.reporting.tables import Table, corruption_table, groups_table, results_table


def text_of(runs: Comparison) -> str:
    """Return the accuracies of the runs on one data set."""
    chance = "" if runs.chance is None else f"; chance {100 * runs.chance:.1f}"
    head = f"data set {plain(runs.dataset)}; accuracy in percent{chance}"
    key = "a ± b: mean and standard deviation over seeds; a (b): one seed, binomial s.e."
    table = results_table(runs)
    lines = [head, key, "", _aligned(table), *(n for n in table.notes if n == MARK_NOTE)]
    if runs.grouped and (groups := groups_table(runs)):
        lines += ["", groups.caption, _aligned(groups)]
        shown = {*runs.grouped, runs.judged_split}
        lines += runs.left_out(split for split in runs.splits if split in shown)
    corruptions = corruption_table(runs)
    if corruptions is not None:  # the page has the whole table
        body = corruptions.body
        corruptions.body = body[body["corruption"].str.startswith("mean of ")]
        lines += ["", "ImageNet-C, the checkpoint that counts", _aligned(corruptions)]
    lines += [f"\n{line}" for group in runs.groups for line in _published(runs, group)]
    return "\n".join(lines)


def _aligned(table: Table) -> str:
    """Return a table as text; the intervals are left to the page."""
    cells = table.body.map(lambda cell: cell.partition("\n")[0])
    # The head is a row like others: as a head it would make each column two wider.
    rows = [[*cells.columns], *cells.to_numpy().tolist()]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _published(runs: Comparison, group: Group) -> list[str]:
    """Return a line with the published unbiased accuracies, if the protocol is the very same."""
    if runs.dataset not in PROTOCOLS or departures(group):
        return []
    # For 9-class ImageNet it is the mean over cells of class and texture.
    measure = "unbiased" if runs.dataset == "imagenet9" else "accuracy"
    split = PROTOCOLS[runs.dataset].test_split
    figure = runs.figure(group, "last", split, group.judged_network, measure)
    known = published().fillna({"rho": -1}).astype(object)
    rho = -1 if group.rho is None else group.rho
    wanted = {"dataset": runs.dataset, "measure": "unbiased", "rho": rho}
    wanted["method"] = group.config.method.name
    known = known[(known[[*wanted]] == pd.Series(wanted)).all(axis=1)]
    if figure is None or known.empty:
        return []
    # The paper's own is first, before those of others.
    theirs = ", ".join(f"{row['percent']:.1f} ({row['source']})" for _, row in known.iterrows())
    return [f"{group.label}: unbiased {figure.text(interval=False)}, published {theirs}"]
