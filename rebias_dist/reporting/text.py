"""The table of a report for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rebias_dist.reporting.corruptions import corruption_table
from rebias_dist.reporting.protocol import PROTOCOLS, departures
from rebias_dist.reporting.published import published_for
from rebias_dist.reporting.runs import Figure, Group, chance_of, plain
from rebias_dist.reporting.series import shown_splits
from rebias_dist.reporting.training_data import rho_of

CHECKPOINTS = ("best", "last")


def text_table(groups: Sequence[Group]) -> list[str]:
    """Return the lines of the table of runs on one data set."""
    splits, chance = shown_splits(groups), chance_of(groups)
    lines = [f"data set {plain(groups[0].config.data.dataset)}; accuracy in percent"]
    for split, sizes in splits.items():
        size = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,}-{max(sizes):,}"
        level = "" if chance is None else f", chance {100 * chance:.1f}"
        lines.append(f"  {plain(split)}: {size} samples{level}")
    if splits:
        lines.append(
            "  a ± b: mean and standard deviation over seeds; a (b): one seed, binomial s.e."
        )
    clustered = [split for split in splits if any(_is_clustered(g, split) for g in groups)]
    if clustered:
        lines.append("  …, unbiased: mean over cells of class and texture cluster")
    columns = [*((split, False) for split in splits), *((split, True) for split in clustered)]
    titles = [plain(split) + ", unbiased" * by_cell for split, by_cell in columns]
    for checkpoint in CHECKPOINTS:
        title = "best checkpoint, chosen on held-out training samples"
        lines += ["", title if checkpoint == "best" else "last checkpoint"]
        rows = [["method", "net", "seeds", *titles]]
        for group in groups:
            rows += _rows(group, checkpoint, columns)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    lines += _corruptions(groups)
    for group in groups:
        figure, known = _compared(group), published(group)
        if figure and known is not None:
            lines += [
                "",
                f"{group.label}: unbiased {figure}, published {known[0]:.1f} ({known[1]})",
            ]
    return lines


def _corruptions(groups: Sequence[Group]) -> list[str]:
    """Return the means over the corruptions of ImageNet-C; the page has the whole table."""
    table = corruption_table(groups)
    if table is None:
        return []
    means = [row for row in table.rows if row[2].text.startswith("mean of ")]
    shown = [f"{row[0].text}  {row[1].text}  {row[-1].text} ({row[2].text})" for row in means]
    return ["", "ImageNet-C, the checkpoint that counts", *shown]


def published(group: Group) -> tuple[float, str] | None:
    """Return the published unbiased percentage and its source, if the protocol is the very same."""
    dataset = group.config.data.dataset
    if dataset not in PROTOCOLS or departures(group):
        return None
    known = published_for(dataset, group.config.method.name, "unbiased", rho_of(group.config))
    return (known[0].percent, known[0].source) if known else None


def _compared(group: Group) -> Figure | None:
    """Return the unbiased accuracy as it is published: of a split, or over cells of clusters."""
    network = "f" if group.config.has_f else "g0"
    if group.config.data.dataset == "imagenet9":
        return group.unbiased("last", PROTOCOLS["imagenet9"].test_split, network)
    return group.figure("last", "unbiased", network)


def _is_clustered(group: Group, split: str) -> bool:
    return any(group.unbiased(c, split, n) for c in CHECKPOINTS for n in group.networks)


def _rows(
    group: Group, checkpoint: str, columns: Sequence[tuple[str, bool]]
) -> Iterable[list[str]]:
    label = plain(group.label, 200)
    if checkpoint == "best" and group.is_oracle:
        label += " [ORACLE: chosen on TEST data; the result is 'last']"
    if not group.runs:
        yield [f"{label}: no results", *[""] * (2 + len(columns))]
        return
    seeds = group.seeds(checkpoint)
    # f and g0 have a line in every method, so that the lines of methods compare.
    for network in dict.fromkeys(["f", "g0", *group.networks]):
        figures = [
            (group.unbiased if by_cell else group.figure)(checkpoint, split, network)
            for split, by_cell in columns
        ]
        yield [label, network, seeds, *("–" if f is None else str(f) for f in figures)]
