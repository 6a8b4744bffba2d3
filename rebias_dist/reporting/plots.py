"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from rebias_dist.reporting import svg
from rebias_dist.reporting.metrics import Curve
from rebias_dist.reporting.published import Published, published_figures
from rebias_dist.reporting.runs import Group, chance_of, plain
from rebias_dist.reporting.series import Series, shown_splits

_OF_METHOD = {
    "vanilla": (svg.MUTED, "s"),
    "biased": (svg.VERMILION, "^"),
    "rubi": (svg.GREEN, "D"),
    "learned_mixin": (svg.PURPLE, "v"),
    "rebias": (svg.BLUE, "o"),
}
_OF_OTHERS = (svg.INK, "P")
_DASHES = ("-", "--", "-.", ":")
_MOST_ROWS = 60  # of a picture; the table has them all
_MOST_G = 8  # biased networks whose curves are drawn


def splits_picture(groups: Sequence[Group]) -> Drawing:
    """Draw the accuracy of f and g by method, one panel a split."""
    splits, chance = shown_splits(groups), chance_of(groups)
    shown = [group for group in groups if group.runs][:_MOST_ROWS]
    height = 1.9 + 0.55 * len(shown)
    figure = svg.canvas(1.8 + 2.6 * len(splits), height)
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, (split, sizes) in zip(axes, splits.items(), strict=True):
        for row, group in enumerate(shown):
            for network in group.networks:
                _draw_point(axis, row, group, split, network)
        if chance is not None:
            axis.axvline(100 * chance, color=svg.MUTED, linestyle="--", linewidth=1)
        axis.set_title(f"{plain(split, 30)}  (n = {max(sizes):,})")
        svg.percent_axis(axis, "x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("accuracy, %")
    labels = [plain(group.label).replace(", ", "\n") for group in shown]
    axes[0].set_yticks(range(len(shown)), labels)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    keys = [
        _key("f, the target network", svg.F_COLOUR, svg.F_MARKER),
        _key("g, the biased network", svg.G_COLOUR, svg.G_MARKER),
        Line2D([], [], color=svg.MUTED, linestyle="--", label="chance"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    dataset = plain(shown[0].config.data.dataset, 40)
    title = f"{dataset}, {checkpoint_words(shown)}; error bars: {error_words(shown)}"
    figure.suptitle(title, fontsize=10)
    return figure


def checkpoint_words(groups: Sequence[Group]) -> str:
    """Say which checkpoint a picture shows."""
    return " or ".join(sorted({group.counting for group in groups})) + " checkpoint"


def error_words(groups: Sequence[Group]) -> str:
    """Say what the error bars of a picture are."""
    several = {len(group.runs) > 1 for group in groups if group.runs}
    words = ["one seed, binomial standard error", "standard deviation over seeds"]
    return " or ".join(words[more] for more in sorted(several, reverse=True))


def _key(label: str, colour: str, marker: str, **more: object) -> Line2D:
    options = {"linestyle": "none", "color": colour, "marker": marker, "label": label, **more}
    return Line2D([], [], **options)  # type: ignore[arg-type]


def _draw_point(axis: Axes, row: int, group: Group, split: str, network: str) -> None:
    """Draw a network's mean accuracy with its error bar and number, and a tick for each seed."""
    point = group.figure(group.counting, split, network)
    if point is None:
        return
    is_f = network == "f"
    colour = svg.F_COLOUR if is_f else svg.G_COLOUR
    mean, error, y = 100 * point.mean, 100 * point.error, row + (-0.14 if is_f else 0.14)
    seeds = [100 * value for value in point.values]
    axis.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.5, markersize=9)
    marker = svg.F_MARKER if is_f else svg.G_MARKER
    axis.errorbar(mean, y, xerr=error, fmt=marker, color=colour, markersize=6, capsize=3)
    side = -1 if mean > 80 else 1  # keeps the number inside the axes
    axis.annotate(
        f"{mean:.1f}",
        (mean + side * error, y),
        xytext=(7 * side, 0),
        textcoords="offset points",
        ha="right" if side < 0 else "left",
        va="center",
        fontsize=8,
        color=colour,
    )


def rho_picture(series: Sequence[Series], split: str) -> Drawing:
    """Draw accuracy over ρ: a panel with all methods, and one for each beside published points."""
    known = [p for p in published_figures() if p.dataset == "biased_mnist"]
    ours = {rho for one in series for rho in one.groups if rho is not None}
    ticks = sorted(ours | {p.rho for p in known if p.rho is not None})
    place = {rho: index for index, rho in enumerate(ticks)}
    methods = list(dict.fromkeys(one.method for one in series))
    columns = min(3, len(methods) + 1)
    rows = -(-(len(methods) + 1) // columns)
    figure = svg.canvas(3.6 * columns, 2.7 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for one in series:
        _draw_series(panels[0], one, place, split, _dash(one, series))
    panels[0].set_title("all, as measured here")
    for panel, method in zip(panels[1:], methods, strict=False):
        for one in series:
            if one.method == method:
                _draw_series(panel, one, place, split, _dash(one, series))
        _draw_published(panel, [p for p in known if p.method == method], place, method)
        panel.set_title(f"{method} beside published points")
    for panel in panels[len(methods) + 1 :]:
        panel.set_visible(False)
    for panel in panels[: len(methods) + 1]:
        panel.set_xticks(range(len(ticks)), [f"{rho:g}" for rho in ticks], rotation=45)
        panel.set_xlim(-0.5, len(ticks) - 0.5)
        panel.set_xlabel("ρ of the training set")
        svg.percent_axis(panel)
    for panel in panels[::columns]:
        panel.set_ylabel("accuracy, %")
    keys = [_key(one.label, *_style(one.method), linestyle=_dash(one, series)) for one in series][
        :12
    ]
    keys += [
        _key(source, svg.INK, marker, markerfacecolor="none")
        for source, marker in _markers(known).items()
        if any(p.source == source and p.method in methods for p in known)
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _style(method: str) -> tuple[str, str]:
    """Return the colour and the mark of a method."""
    return _OF_METHOD.get(method, _OF_OTHERS)


def _dash(one: Series, series: Sequence[Series]) -> str:
    same = [other for other in series if other.method == one.method]
    return _DASHES[next(i for i, other in enumerate(same) if other is one) % len(_DASHES)]


def _markers(known: Sequence[Published]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(p.source for p in known), "DsPX*", strict=False))


def _draw_series(
    axis: Axes, one: Series, place: Mapping[float, int], split: str, dash: str
) -> None:
    points = []
    for rho, group in one.groups.items():
        figure = one.figure(rho, group.counting, split)
        if figure is not None and rho is not None:
            points.append((place[rho], 100 * figure.mean, 100 * figure.error))
    if not points:
        return
    colour, marker = _style(one.method)
    x, y, error = zip(*sorted(points), strict=True)
    axis.errorbar(
        x, y, yerr=error, color=colour, marker=marker, linestyle=dash, markersize=5, capsize=3
    )


def _draw_published(
    axis: Axes, known: Sequence[Published], place: Mapping[float, int], method: str
) -> None:
    for source, marker in _markers(
        [p for p in published_figures() if p.dataset == "biased_mnist"]
    ).items():
        points = [(place[p.rho], p.percent) for p in known if p.source == source and p.rho]
        if points:
            x, y = zip(*sorted(points), strict=True)
            style = {"color": _style(method)[0], "marker": marker, "linestyle": ":"}
            axis.plot(x, y, **style, linewidth=0.8, markersize=6, markerfacecolor="none")  # type: ignore[arg-type]


def scatter_picture(classes: Sequence[str], f: Sequence[float], g: Sequence[float]) -> Drawing:
    """Draw f's accuracy against g's, a point a class; above the diagonal f is the better one."""
    figure = svg.canvas(3.8, 3.7)
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color=svg.MUTED, linestyle="--", linewidth=1)
    axis.plot([100 * v for v in g], [100 * v for v in f], "o", color=svg.BLUE, alpha=0.75)
    if len(classes) <= 20:
        # Names of neighbours go to different sides, for g often does alike on all classes.
        ordered = sorted(zip(f, g, classes, strict=True))
        for index, (up, right, name) in enumerate(ordered):
            side = 1 if index % 2 == 0 else -1
            axis.annotate(
                plain(name, 16),
                (100 * right, 100 * up),
                xytext=(6 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8,
            )
    svg.percent_axis(axis, "x")
    svg.percent_axis(axis)
    axis.set_xlabel("accuracy of g, %")
    axis.set_ylabel("accuracy of f, %")
    return figure


class Panel(NamedTuple):
    """One quantity over the steps of training."""

    title: str
    lines: list[tuple[str, Curve]]
    """Each with its network, 'f' or 'g'; HSIC of both is f's."""
    percent: bool = False


def training_panels(curves: Sequence[Mapping[str, Curve]], split: str) -> list[Panel]:
    """Return what there is to draw of runs' training; ``split`` was evaluated meanwhile."""
    gs = range(_MOST_G)
    tags = [
        (
            f"accuracy on {plain(split, 30)}, %",
            [("f", f"{split}/f_accuracy"), *(("g", f"{split}/g{i}_accuracy") for i in gs)],
        ),
        ("cross-entropy in training", [("f", "f/ce"), *(("g", f"g{i}/ce") for i in gs)]),
        ("HSIC of f and g in training", [("f", f"f/hsic_g{i}") for i in gs]),
        ("kernel radius σ", [("f", "f/sigma"), *(("g", f"g{i}/sigma") for i in gs)]),
    ]
    panels = [
        Panel(
            title,
            [(net, run[tag]) for run in curves for net, tag in wanted if tag in run],
            title.endswith("%"),
        )
        for title, wanted in tags
    ]
    return [panel for panel in panels if panel.lines]


def training_picture(panels: Sequence[Panel]) -> Drawing:
    """Draw what a method's runs went through, f and g in each panel; a line a seed."""
    figure = svg.canvas(2.7 * len(panels) + 0.4, 2.7)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for network, (steps, values) in panel.lines:
            is_f = network == "f"
            axis.plot(
                steps,
                [100 * value for value in values] if panel.percent else values,
                color=svg.F_COLOUR if is_f else svg.G_COLOUR,
                linestyle="-" if is_f else "--",
                marker="." if len(steps) < 12 else "",
                linewidth=1.2,
                alpha=0.75,
            )
        axis.set_title(panel.title)
        axis.set_xlabel("step")
        if panel.percent:
            svg.percent_axis(axis)
    there = {network for panel in panels for network, _ in panel.lines}
    keys = [
        _key(label, colour, "", linestyle=dash)
        for network, colour, dash, label in (
            ("f", svg.F_COLOUR, "-", "f, and HSIC"),
            ("g", svg.G_COLOUR, "--", "g"),
        )
        if network in there
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure
