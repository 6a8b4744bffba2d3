"""The picture of a report. Drawn with matplotlib's objects alone: no window, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rebias_dist.run_results import Group, chance_of, splits_of


class _Style(NamedTuple):
    """How the points of a network look; beside the colour, the shape tells them apart."""

    colour: str
    marker: str
    offset: float


# Colours of Okabe and Ito, which every colour vision tells apart.
_F = _Style("#0072B2", "o", -0.14)
_G = _Style("#D55E00", "^", 0.14)


def draw(path: Path, groups: Sequence[Group]) -> None:
    """Draw the accuracy of f and g by method, one panel a split.

    Colours by Okabe and Ito, told apart with any colour vision, and by their shape in grey.
    """
    splits, chance = splits_of(groups), chance_of(groups)
    shown = [group for group in groups if group.runs]
    height = 1.9 + 0.55 * len(shown)
    figure = Figure(
        figsize=(1.8 + 3.2 * len(splits), height), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, (split, sizes) in zip(axes, splits.items(), strict=True):
        for row, group in enumerate(shown):
            for network in group.networks:
                _draw_point(axis, row, group, split, network)
        if chance is not None:
            axis.axvline(100 * chance, color="#777777", linestyle="--", linewidth=1)
        axis.set_title(f"{split}  (n = {max(sizes):,})", fontsize=10)
        axis.set_xlim(-2, 102)
        axis.grid(axis="x", color="#e5e5e5")
        axis.set_axisbelow(True)
        axis.set_xlabel("accuracy, %")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(shown)), [g.label.replace(", ", "\n") for g in shown])
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    axes[0].plot([], [], _F.marker, color=_F.colour, label="f, the target network")
    axes[0].plot([], [], _G.marker, color=_G.colour, label="g, the biased network")
    axes[0].plot([], [], "--", color="#777777", label="chance")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    seeds = max(len(group.runs) for group in shown)
    error = "standard deviation over seeds" if seeds > 1 else "one seed, binomial standard error"
    dataset, kinds = shown[0].config.data.dataset, {_checkpoint(group) for group in shown}
    title = f"{dataset}, {' or '.join(sorted(kinds))} checkpoint; error bars: {error}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def _checkpoint(group: Group) -> str:
    """Return the checkpoint that counts: the best, unless test data chose it."""
    return "last" if group.is_oracle else "best"


def _draw_point(axis: Axes, row: int, group: Group, split: str, network: str) -> None:
    """Draw a network's mean accuracy with its error bar and number, and a tick for each seed."""
    point = group.figure(_checkpoint(group), split, network)
    if point is None:
        return
    style = _F if network == "f" else _G
    mean, error, y = 100 * point.mean, 100 * point.error, row + style.offset
    seeds = [100 * value for value in point.values]
    axis.plot(seeds, [y] * len(seeds), "|", color=style.colour, alpha=0.5, markersize=9)
    axis.errorbar(
        mean, y, xerr=error, fmt=style.marker, color=style.colour, markersize=6, capsize=3
    )
    side = -1 if mean > 80 else 1  # keeps the number inside the axes
    axis.annotate(
        f"{mean:.1f}",
        (mean + side * error, y),
        xytext=(7 * side, 0),
        textcoords="offset points",
        ha="right" if side < 0 else "left",
        va="center",
        fontsize=8,
        color=style.colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )
