"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from rebias_dist.methods.registry import METHODS
from rebias_dist.reporting import svg
from rebias_dist.reporting.comparison import Comparison
from rebias_dist.reporting.disagreements import SHOWN, Disagreements
from rebias_dist.reporting.frame import Figure
from rebias_dist.reporting.metrics import Curve
from rebias_dist.reporting.published import published
from rebias_dist.reporting.runs import plain

_OF_METHOD: dict[str, dict[str, Any]] = {
    "vanilla": {"color": svg.MUTED, "marker": "s"},
    "biased": {"color": svg.VERMILION, "marker": "^"},
    "rubi": {"color": svg.GREEN, "marker": "D"},
    "learned_mixin": {"color": svg.PURPLE, "marker": "v"},
    "rebias": {"color": svg.BLUE, "marker": "o"},
}
_COLOURS = (svg.INK, svg.VERMILION, svg.GREEN, svg.PURPLE, svg.BLUE)
_MARKERS = "PX*<>hpd8"
# Five colours and nine markers have no common divisor, so no two methods look alike.
_OF_METHOD |= {
    name: {"color": colour, "marker": marker}
    for name, colour, marker in zip(
        [name for name in METHODS if name not in _OF_METHOD],
        cycle(_COLOURS),
        cycle(_MARKERS),
        strict=False,
    )
}
_OF_OTHERS = {"color": svg.INK, "marker": "H"}
_OF_SOURCES = "DsPX*^v<>ph"
_OF_NETWORK: dict[str, dict[str, Any]] = {
    "f": {"color": svg.BLUE, "marker": "o"},
    "g": {"color": svg.VERMILION, "marker": "^"},
}
_DASHES = ("-", "--", "-.", ":")
_MOST_ROWS = 60  # of a picture; the table has them all
_MOST_G = 8  # biased networks whose curves are drawn


def words(runs: Comparison) -> str:
    """Say which checkpoint a picture shows, and what its error bars are."""
    shown = [group for group in runs.groups if group.runs]
    several = sorted({len(group.runs) > 1 for group in shown}, reverse=True)
    kinds = ["one seed, binomial standard error", "standard deviation over seeds"]
    checkpoints = " or ".join(sorted({group.counting for group in shown}))
    return f"{checkpoints} checkpoint; error bars: {' or '.join(kinds[n] for n in several)}"


def splits_picture(runs: Comparison) -> Drawing:
    """Draw the accuracy of f and g by method, one panel a split."""
    shown = [group for group in runs.groups if group.runs][:_MOST_ROWS]
    figure = svg.canvas(1.8 + 2.6 * len(runs.splits), 1.9 + 0.55 * len(shown))
    axes = figure.subplots(1, len(runs.splits), sharey=True, squeeze=False)[0]
    for axis, (split, sizes) in zip(axes, runs.splits.items(), strict=True):
        for row, group in enumerate(shown):
            for network in group.networks:
                point = runs.figure(group, group.counting, split, network)
                if point is not None:
                    y = row + (-0.14 if network == "f" else 0.14)
                    _draw_point(axis, point, y, _OF_NETWORK[network[0]])
        if runs.chance is not None:
            axis.axvline(100 * runs.chance, color=svg.MUTED, linestyle="--", linewidth=1)
        axis.set_title(f"{plain(split, 30)}  (n = {sizes[-1]:,})")
        svg.percent_axis(axis, "x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("accuracy, %")
    labels = [plain(group.label).replace(", ", "\n") for group in shown]
    axes[0].set_yticks(range(len(shown)), labels)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    keys = [
        _key("f, the target network", **_OF_NETWORK["f"]),
        _key("g, the biased network", **_OF_NETWORK["g"]),
        _key("chance", color=svg.MUTED, linestyle="--"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    figure.suptitle(f"{plain(runs.dataset, 40)}, {words(runs)}", fontsize=10)
    return figure


def _draw_point(axis: Axes, point: Figure, y: float, style: Mapping[str, Any]) -> None:
    """Draw a mean accuracy with its error bar and number, and a tick for each seed."""
    mean, error, seeds = 100 * point.mean, 100 * point.error, len(point.values)
    axis.plot(
        [100 * v for v in point.values], [y] * seeds, "|", color=style["color"], alpha=0.5, ms=9
    )
    axis.errorbar(mean, y, xerr=error, **style, markersize=6, capsize=3)
    side = -1 if mean > 80 else 1  # keeps the number inside the axes
    _label(axis, f"{mean:.1f}", mean + side * error, y, side, style["color"])


def _label(axis: Axes, text: str, x: float, y: float, side: int, colour: str = svg.INK) -> None:
    """Write a text to the right (1) or to the left (-1) of a point."""
    axis.annotate(
        text,
        (x, y),
        xytext=(7 * side, 0),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        fontsize=8,
        color=colour,
    )


def _key(label: str, **style: Any) -> Line2D:
    return Line2D([], [], label=label, **{"linestyle": "none", **style})


def rho_picture(runs: Comparison, *, with_published: bool = True) -> Drawing:
    """Draw accuracy over ρ: a panel with all methods, and one for each.

    ``with_published``: draw the published points in the panel of their method.
    """
    known = published()
    known = known[(known["dataset"] == "biased_mnist") & with_published]
    marks = dict(zip(known["source"].unique(), cycle(_OF_SOURCES), strict=False))
    ticks = sorted({*known["rho"], *(group.rho for group in runs.groups)} - {None})
    series = {group.series: group.config.method.name for group in runs.groups}
    methods = list(dict.fromkeys(series.values()))
    known = known[known["method"].isin(methods)].sort_values("rho")
    columns = min(3, len(methods) + 1)
    rows = -(-(len(methods) + 1) // columns)
    figure = svg.canvas(3.6 * columns, 2.7 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    keys = []
    for name, method in series.items():
        same = [other for other in series if series[other] == method]
        style = {**_OF_METHOD.get(method, _OF_OTHERS), "linestyle": _DASHES[same.index(name) % 4]}
        points = _over_rho(runs, name)
        x, y = [ticks.index(rho) for rho, _ in points], [100 * point.mean for _, point in points]
        errors = [100 * point.error for _, point in points]
        for panel in (panels[0], panels[1 + methods.index(method)]) if points else ():
            panel.errorbar(x, y, yerr=errors, **style, markersize=5, capsize=3)
        keys.append(_key(plain(name), **style))
    panels[0].set_title("all, as measured here")
    hollow = {"linestyle": ":", "linewidth": 0.8, "markersize": 6, "markerfacecolor": "none"}
    for (theirs, source), found in known.groupby(["method", "source"]):
        colour = _OF_METHOD.get(str(theirs), _OF_OTHERS)["color"]
        panel = panels[1 + methods.index(str(theirs))]
        x, mark = [ticks.index(rho) for rho in found["rho"]], marks[source]
        panel.plot(x, found["percent"], color=colour, marker=mark, **hollow)
    for panel, method in zip(panels[1:], methods, strict=False):
        there_too = (known["method"] == method).any()
        panel.set_title(f"{method} beside published points" if there_too else method)
    for panel in panels[len(methods) + 1 :]:
        panel.set_visible(False)
    for panel in panels[: len(methods) + 1]:
        panel.set_xticks(range(len(ticks)), [f"{rho:g}" for rho in ticks], rotation=45)
        panel.set_xlim(-0.5, max(len(ticks), 1) - 0.5)
        panel.set_xlabel("ρ of the training set")
        svg.percent_axis(panel)
    for panel in panels[::columns]:
        panel.set_ylabel("accuracy, %")
    there = [source for source in marks if source in set(known["source"])]
    hollow["linestyle"] = "none"
    keys = keys[:20] + [_key(s, color=svg.INK, marker=marks[s], **hollow) for s in there]
    figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _over_rho(runs: Comparison, series: str) -> list[tuple[float, Figure]]:
    """Return the unbiased accuracy of a series by ρ, ascending."""
    found = [
        (group.rho, runs.figure(group, group.counting, "unbiased", group.judged_network))
        for group in runs.groups
        if group.series == series
    ]
    known = [(rho, figure) for rho, figure in found if rho is not None and figure is not None]
    return sorted(known, key=lambda point: point[0])


def scatter_picture(classes: Sequence[tuple[str, float, float]]) -> Drawing:
    """Draw f's accuracy against g's, a point a class; above the diagonal f is the better one.

    Args:
        classes: of each its name and the accuracies of f and g in [0, 1].
    """
    figure = svg.canvas(3.8, 3.7)
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color=svg.MUTED, linestyle="--", linewidth=1)
    # Names of neighbours go to different sides, for g often does alike on all classes.
    for index, (name, f, g) in enumerate(sorted(classes, key=lambda one: one[1:])):
        axis.plot(100 * g, 100 * f, "o", color=svg.BLUE, alpha=0.75)
        if len(classes) <= 20:
            _label(axis, plain(name, 16), 100 * g, 100 * f, 1 if index % 2 == 0 else -1)
    svg.percent_axis(axis, "x")
    svg.percent_axis(axis)
    axis.set_xlabel("accuracy of g, %")
    axis.set_ylabel("accuracy of f, %")
    return figure


@dataclass(frozen=True)
class Progress:
    """The accuracy of a setting's runs during training."""

    series: str
    """Name of the setting without its ρ."""
    method: str
    rho: float | None
    band: pd.DataFrame
    """By step the columns mean, min and max over seeds."""


def band_of(curves: Sequence[Curve]) -> pd.DataFrame:
    """Return mean, min and max over runs, by the steps that all of them have; at least one run."""
    by_run = pd.concat([pd.Series(values, steps) for steps, values in curves], axis=1, join="inner")
    return by_run.agg(["mean", "min", "max"], axis=1)


def progress_picture(found: Sequence[Progress], rhos: Sequence[float | None]) -> Drawing:
    """Draw accuracies over the steps, a panel for each of ``rhos``; the band is over seeds."""
    columns = min(3, len(rhos))
    rows = -(-len(rhos) // columns)
    figure = svg.canvas(max(4.6, 3.2 * columns), 2.7 * rows + 0.6)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    keys: dict[str, Line2D] = {}
    for series in dict.fromkeys(progress.series for progress in found):
        mine = [progress for progress in found if progress.series == series]
        method = mine[0].method
        same = [*dict.fromkeys(p.series for p in found if p.method == method)]
        style = {**_OF_METHOD.get(method, _OF_OTHERS), "linestyle": _DASHES[same.index(series) % 4]}
        keys[series] = _key(plain(series), **style)
        for progress in mine:
            panel, steps = panels[rhos.index(progress.rho)], progress.band.index
            marker = {} if len(steps) < 12 else {"marker": ""}
            mean, low, high = (100 * progress.band[name] for name in ("mean", "min", "max"))
            panel.plot(steps, mean, **{**style, **marker}, markersize=4)
            panel.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    for panel, rho in zip(panels, rhos, strict=False):
        panel.set_title("" if rho is None else f"ρ = {rho:g}")
        panel.set_xlabel("step")
        svg.percent_axis(panel)
    for panel in panels[len(rhos) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("accuracy, %")
    figure.legend(handles=[*keys.values()][:20], loc="outside lower center", ncols=2)
    return figure


def disagreements_picture(found: Disagreements) -> Drawing:
    """Draw images on which f and g disagree, a row for each kind that has some."""
    kinds = found.kinds
    figure = svg.canvas(1.15 * SHOWN, 2.1 * len(kinds))
    rows = figure.subfigures(len(kinds), 1, squeeze=False)[:, 0]
    for row, kind in zip(rows, kinds, strict=True):
        row.suptitle(f"{kind.title}: {kind.count:,} of {found.looked_at:,}", fontsize=10)
        axes = row.subplots(1, SHOWN, squeeze=False)[0]
        for axis in axes:
            axis.set_axis_off()
        for axis, sample in zip(axes, kind.samples, strict=False):
            axis.imshow(sample.image, interpolation="nearest")
            said = f"{sample.label}\nf: {sample.f}\ng: {sample.g}"
            axis.text(0.5, -0.06, said, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    return figure


Panels = dict[str, list[tuple[str, Curve]]]
"""By title the curves of a panel, each with its network 'f' or 'g'; HSIC of both is f's."""


def training_panels(curves: Sequence[Mapping[str, Curve]], split: str) -> Panels:
    """Return the panels for the training of runs; ``split`` was evaluated meanwhile."""
    gs = [f"g{index}" for index in range(_MOST_G)]
    tags = {
        f"accuracy on {plain(split, 30)}, %": [f"{split}/{n}_accuracy" for n in ("f", *gs)],
        "cross-entropy in training": [f"{n}/ce" for n in ("f", *gs)],
        "HSIC of f and g in training": [f"f/hsic_{g}" for g in gs],
        "kernel radius σ": [f"{n}/sigma" for n in ("f", *gs)],
    }
    panels = {
        title: [
            ("f" if index == 0 or title.startswith("HSIC") else "g", run[tag])
            for run in curves
            for index, tag in enumerate(wanted)
            if tag in run
        ]
        for title, wanted in tags.items()
    }
    return {title: lines for title, lines in panels.items() if lines}


def training_picture(panels: Panels) -> Drawing:
    """Draw the curves of a method's runs, f and g in each panel; a line a seed."""
    figure = svg.canvas(2.7 * len(panels) + 0.4, 2.7)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    styles = {
        "f": {"color": svg.BLUE, "linestyle": "-", "label": "f, and HSIC"},
        "g": {"color": svg.VERMILION, "linestyle": "--", "label": "g"},
    }
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        scale = 100 if title.endswith("%") else 1
        for network, (steps, values) in lines:
            axis.plot(
                steps,
                [scale * value for value in values],
                **styles[network],
                marker="." if len(steps) < 12 else "",
                linewidth=1.2,
                alpha=0.75,
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        if scale == 100:
            svg.percent_axis(axis)
    there = {network for lines in panels.values() for network, _ in lines}
    keys = [_key(**style) for network, style in styles.items() if network in there]
    figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure
