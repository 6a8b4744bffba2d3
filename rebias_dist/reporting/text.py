"""The table of a report for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rebias_dist.reporting.protocol import departures, rho_of
from rebias_dist.reporting.published import published_for
from rebias_dist.run_results import Group, chance_of, plain, splits_of

CHECKPOINTS = ("best", "last")


def text_table(groups: Sequence[Group]) -> list[str]:
    """Return the lines of the table of runs on one data set."""
    splits, chance = splits_of(groups), chance_of(groups)
    lines = [f"data set {plain(groups[0].config.data.dataset)}; accuracy in percent"]
    for split, sizes in splits.items():
        size = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,}-{max(sizes):,}"
        level = "" if chance is None else f", chance {100 * chance:.1f}"
        lines.append(f"  {plain(split)}: {size} samples{level}")
    if splits:
        lines.append(
            "  a ± b: mean and standard deviation over seeds; a (b): one seed, binomial s.e."
        )
    for checkpoint in CHECKPOINTS:
        title = "best checkpoint, chosen on held-out training samples"
        lines += ["", title if checkpoint == "best" else "last checkpoint"]
        rows = [["method", "net", "seeds", *map(plain, splits)]]
        for group in groups:
            rows += _rows(group, checkpoint, list(splits))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    for group in groups:
        figure, known = group.figure("last", "unbiased", "f"), published(group)
        if figure and known is not None:
            lines += [
                "",
                f"{group.label}: unbiased {figure}, published {known[0]:.1f} ({known[1]})",
            ]
    return lines


def published(group: Group) -> tuple[float, str] | None:
    """Return the published unbiased percentage and its source, if the protocol is the very same."""
    if group.config.data.dataset != "biased_mnist" or departures(group):
        return None
    rho = rho_of(group.config)
    known = published_for("biased_mnist", group.config.method.name, "unbiased", rho)
    return (known[0].percent, known[0].source) if known else None


def _rows(group: Group, checkpoint: str, splits: Sequence[str]) -> Iterable[list[str]]:
    label = plain(group.label, 200)
    if checkpoint == "best" and group.is_oracle:
        label += " [ORACLE: chosen on TEST data; the result is 'last']"
    if not group.runs:
        yield [f"{label}: no results", *[""] * (2 + len(splits))]
        return
    seeds = group.seeds(checkpoint)
    # f and g0 have a line in every method, so that the lines of methods compare.
    for network in dict.fromkeys(["f", "g0", *group.networks]):
        figures = [group.figure(checkpoint, split, network) for split in splits]
        yield [label, network, seeds, *("–" if f is None else str(f) for f in figures)]
