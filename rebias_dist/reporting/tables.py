"""The tables of a report's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import Published, published_figures
from rebias_dist.reporting.runs import Figure, Group, plain
from rebias_dist.reporting.series import Series, contrasts, shown_splits
from rebias_dist.runs.results_schema import Score

ABSENT = "–"
_MOST_CLASSES = 30  # of a matrix that is shown whole; of a larger one its worst cells


@dataclass(frozen=True)
class Cell:
    """One cell: a text, what is said in small letters below it, and how it looks."""

    text: str
    small: str = ""
    kind: str = ""
    """'name' heads its row, 'text' is not a number, 'oracle' warns, 'published' is not ours."""
    heat: float | None = None
    """0 to 1: how strongly the cell is coloured."""


@dataclass
class Table:
    """A table with a caption; every row has as many cells as the head."""

    caption: str
    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def is_text(self, column: int) -> bool:
        """Return whether a column is read as words, not compared as numbers."""
        return any(row[column].kind.startswith(("text", "name")) for row in self.rows)


def figure_cell(figure: Figure | None, kind: str = "") -> Cell:
    """Return an accuracy with its error and interval; a dash where there is none."""
    if figure is None:
        return Cell(ABSENT, kind=kind)
    low, high = figure.interval
    interval = "" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"
    return Cell(str(figure), interval, kind)


def selection_words(group: Group, checkpoint: str) -> tuple[str, str]:
    """Return how a checkpoint was chosen, and the kind of its cells."""
    if checkpoint == "last":
        return "last", "text"
    if group.is_oracle:
        return "ORACLE: best on test data, no result", "oracle"
    return "best on selection data", "text"


def results_table(groups: Sequence[Group]) -> Table:
    """Return every figure: a row for each setting, checkpoint and network."""
    splits = shown_splits(groups)
    table = Table(
        "Accuracy in percent: last checkpoint, best on selection data, and oracle where so marked",
        ["method and setting", "checkpoint", "net", "seeds"],
        notes=[
            "a ± b: mean and standard deviation over seeds; below it Student's 95 % interval of "
            "the mean. a (b): one seed with its binomial standard error; below it Wilson's 95 % "
            "interval, which says nothing of other seeds.",
        ],
    )
    for split, sizes in splits.items():
        samples = f"{min(sizes):,}" if min(sizes) == max(sizes) else "sizes differ"
        table.head.append(f"{plain(split, 30)} (n = {samples})")
    for group in groups:
        name = Cell(plain(group.label, 200), kind="name")
        if not group.runs:
            why = "; ".join(f"{plain(r.name)}: {r.problem}" for r in group.without)
            blank = [Cell(ABSENT) for _ in splits]
            row = [name, Cell("no results", why, "text"), Cell(ABSENT, kind="text"), Cell("0")]
            table.rows.append([*row, *blank])
            continue
        for checkpoint in ("last", "best"):
            words, kind = selection_words(group, checkpoint)
            for network in dict.fromkeys(["f", "g0", *group.networks]):
                figures = [
                    figure_cell(
                        group.figure(checkpoint, split, network),
                        "oracle" if kind == "oracle" else "",
                    )
                    for split in splits
                ]
                row = [name, Cell(words, kind=kind), Cell(network, kind="text")]
                row.append(Cell(group.seeds(checkpoint)))
                table.rows.append([*row, *figures])
    return table


def measures_table(groups: Sequence[Group], split: str) -> Table | None:
    """Return what tells bias beside the accuracy; None where no run tells any of it."""
    table = Table(
        f"How the bias shows on {plain(split, 30)}, in percent; the checkpoint that counts",
        ["method and setting", "net", *_MEASURES, "HSIC with f × 1000"],
        notes=[
            "conflicting: accuracy where the bias is another class's. follows the bias: part of "
            "these taken for that class. worst class: its accuracy. ECE: expected calibration "
            "error. Mean ± standard deviation over seeds; – : not there, or not recorded."
        ],
    )
    for group in groups:
        for network in group.networks:
            scores = [s for _, s, _ in group.scores(group.counting, split, network)]
            measured = [[measure(s) for s in scores] for measure in _MEASURES.values()]
            cells = [spread_cell(values, 100) for values in measured]
            g = int(network[1:]) if network != "f" else None
            hsic = [] if g is None else group.hsic(group.counting, split, g)
            cells.append(spread_cell(hsic, 1_000, digits=2))
            if any(cell.text != ABSENT for cell in cells):
                name = Cell(plain(group.label, 200), kind="name")
                table.rows.append([name, Cell(network, kind="text"), *cells])
    return table if table.rows else None


_MEASURES: dict[str, Callable[[Score], float | None]] = {
    "conflicting": Score.conflicting,
    "follows the bias": lambda score: score.follows_bias,
    "worst class": lambda score: min((v for v in score.by_class() if v is not None), default=None),
    "ECE": lambda score: score.calibration.ece if score.calibration else None,
}


def spread_cell(values: Sequence[float | None], scale: float, digits: int = 1) -> Cell:
    """Return mean ± standard deviation of the values that are there, times a scale."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return Cell(ABSENT)
    text = f"{np.mean(known):.{digits}f}"
    return Cell(f"{text} ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else text)


def contrast_table(groups: Sequence[Group], split: str) -> Table | None:
    """Return each method's lead over vanilla; None where there is nothing to compare."""
    found = contrasts(groups, split)
    if not found:
        return None
    table = Table(
        f"Lead over vanilla on {plain(split, 30)}, in percentage points",
        ["method and setting", "lead", "95 % interval", "seeds in common", "reading"],
        notes=[
            "Differences seed by seed between f of the method and f of vanilla under the same "
            "setting, with the checkpoint that counts; Student's interval. With few seeds it is "
            "wide, and that is what is known."
        ],
    )
    for one in found:
        low, high = one.interval or (float("-inf"), float("inf"))
        if one.interval is None:
            interval, reading = ABSENT, "one seed decides nothing"
        else:
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            reading = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        table.rows.append(
            [
                Cell(plain(one.group.label, 200), kind="name"),
                Cell(f"{100 * one.difference:+.1f}"),
                Cell(interval),
                Cell(str(one.seeds)),
                Cell(reading, kind="text"),
            ]
        )
    return table


def rho_table(series: Sequence[Series], split: str) -> Table:
    """Return the table of Biased-MNIST: methods by ρ, ours and published."""
    known = [p for p in published_figures() if p.dataset == "biased_mnist"]
    ours = {rho for one in series for rho in one.groups if rho is not None}
    columns: list[float | None] = [*sorted(ours | {p.rho for p in known if p.rho}, reverse=True)]
    if any(None in one.groups for one in series):
        columns.append(None)
    table = Table(
        f"Biased-MNIST: accuracy on {plain(split, 30)} in percent, by ρ of the training set",
        ["method", "source", *("ρ unknown" if c is None else f"ρ\u00a0{c:g}" for c in columns)],
        notes=[
            "The accuracy is f's, of biased it is g's. What differs from the published "
            "experiments is listed below; where anything does, the rows are no comparison of codes."
        ],
    )
    for one in series:
        for checkpoint in ("last", "best"):
            example = next(iter(one.groups.values()))
            words, kind = selection_words(example, checkpoint)
            row = [Cell(plain(one.label, 200), kind="name"), Cell(f"here, {words}", kind=kind)]
            mark = "oracle" if kind == "oracle" else ""
            figures = [figure_cell(one.figure(rho, checkpoint, split), mark) for rho in columns]
            table.rows.append(row + figures)
    for label, source in dict.fromkeys((p.label, p.source) for p in known):
        percents = {p.rho: p.percent for p in known if (p.label, p.source) == (label, source)}
        row = [Cell(label, kind="name"), Cell(source, kind="text published")]
        table.rows.append(row + [_published(percents.get(rho)) for rho in columns])
    return table


def _published(percent: float | None) -> Cell:
    return Cell(ABSENT if percent is None else f"{percent:.1f}", kind="published")


def nine_table(groups: Sequence[Group]) -> Table:
    """Return the table of 9-class ImageNet: ours and published."""
    known = [p for p in published_figures() if p.dataset == "imagenet9"]
    measures = ("biased", "unbiased", "imagenet-a")
    table = Table(
        "9-class ImageNet: accuracy in percent",
        ["method", "source", "validation (biased)", "unbiased", "ImageNet-A"],
        notes=[
            "unbiased: the mean over cells of class and texture cluster with at least 10 "
            "validation images, over three clusterings; – where the validation shards had no "
            "clusters. The accuracy is f's, of biased it is g's."
        ],
    )
    for group in groups:
        network = "f" if group.config.has_f else "g0"
        for checkpoint in ("last", "best"):
            words, kind = selection_words(group, checkpoint)
            mark = "oracle" if kind == "oracle" else ""
            figures = (
                group.figure(checkpoint, "val", network),
                group.unbiased(checkpoint, "val", network),
                group.figure(checkpoint, _imagenet_a(group), network),
            )
            name = Cell(plain(group.label, 200), kind="name")
            cells = [figure_cell(figure, mark) for figure in figures]
            table.rows.append([name, Cell(f"here, {words}", kind=kind), *cells])
    rows: dict[tuple[str, str], dict[str, Published]] = {}
    for p in known:
        rows.setdefault((p.label, p.source), {})[p.measure] = p
    for (label, source), found in rows.items():
        percents = [found[m].percent if m in found else None for m in measures]
        row = [Cell(label, kind="name"), Cell(source, kind="text published")]
        table.rows.append(row + [_published(percent) for percent in percents])
    return table


def _imagenet_a(group: Group) -> str:
    names = [*group.config.data.test_splits, *group.config.data.other_tests]
    wanted = ("imageneta", "imagenet9a")
    return next((n for n in names if n.lower().replace("-", "").replace("_", "") in wanted), "")


def departure_table(groups: Sequence[Group], source: str) -> Table:
    """Return what differs from the published protocol: a row a setting."""
    here: dict[tuple[str, str], dict[str, list[str]]] = {}
    for group in groups:
        for one in departures(group) or []:
            values = here.setdefault((one.key, one.published), {})
            values.setdefault(one.here, []).append(plain(group.label))
    table = Table(
        f"What differs from the published protocol ({source})",
        ["setting", "here", "published"],
        notes=["Computed from each run's configuration and test set; seeds are not compared."],
    )
    for (key, published), values in here.items():
        everywhere = len(values) == 1 and len(next(iter(values.values()))) == len(groups)
        text = "; ".join(
            plain(value) if everywhere else f"{plain(value)} ({', '.join(labels)})"
            for value, labels in values.items()
        )
        table.rows.append(
            [Cell(key, kind="name"), Cell(text, kind="text"), Cell(published, kind="text")]
        )
    return table


def confusion_table(group: Group, split: str, network: str) -> Table | None:
    """Return label × prediction, summed over seeds; None where no run tells it."""
    found = [s.confusion for _, s, _ in group.scores(group.counting, split, network)]
    counts = _sum(found)
    if counts is None:
        return None
    classes = _classes(group)
    caption = f"{network}: label (row) × prediction, {plain(split, 30)}, counts over all seeds"
    if len(classes) > _MOST_CLASSES:
        return _worst_confusions(caption, counts, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    table = Table(caption, ["", *classes])
    for label, name in enumerate(classes):
        cells = [
            Cell(f"{n:,}", heat=float(s)) for n, s in zip(counts[label], shares[label], strict=True)
        ]
        table.rows.append([Cell(name, kind="name"), *cells])
    return table


def _worst_confusions(caption: str, counts: NDArray[np.int64], classes: Sequence[str]) -> Table:
    wrong = counts - np.diag(np.diagonal(counts))
    table = Table(f"{caption}; the 20 most frequent errors", ["label", "prediction", "images"])
    for index in np.argsort(-wrong, axis=None, kind="stable")[:20]:
        label, said = np.unravel_index(index, wrong.shape)
        if wrong[label, said]:
            cells = [Cell(classes[label], kind="name"), Cell(classes[said], kind="text")]
            table.rows.append([*cells, Cell(f"{wrong[label, said]:,}")])
    return table


def bias_table(group: Group, split: str, network: str) -> Table | None:
    """Return the accuracy by label × bias over all seeds; None where samples have no bias."""
    scores = [s for _, s, _ in group.scores(group.counting, split, network)]
    count, correct = _sum([s.bias_count for s in scores]), _sum([s.bias_correct for s in scores])
    classes = _classes(group)
    if count is None or correct is None or not count.any() or len(count) != len(classes):
        return None
    if max(count.shape) > _MOST_CLASSES:
        return None
    heads = [str(bias) for bias in range(count.shape[1])]
    table = Table(
        f"{network}: accuracy in percent by label (row) × bias, {plain(split, 30)}",
        ["", *heads],
        notes=["A bias goes with the class of its number. – : no such image."],
    )
    for label, name in enumerate(classes):
        cells = [
            Cell(f"{100 * c / n:.0f}", heat=float(c / n)) if n else Cell(ABSENT)
            for c, n in zip(correct[label], count[label], strict=True)
        ]
        table.rows.append([Cell(name, kind="name"), *cells])
    return table


def _sum(matrices: Sequence[list[list[int]]]) -> NDArray[np.int64] | None:
    """Return the sum of those that are there; None if there is none or they differ in shape."""
    arrays = [np.array(m, dtype=np.int64) for m in matrices if m and len(set(map(len, m))) == 1]
    if not arrays or len({a.shape for a in arrays}) > 1:
        return None
    total: NDArray[np.int64] = np.sum(arrays, axis=0)
    return total


def _classes(group: Group) -> list[str]:
    results = next(run.results for run in group.runs if run.results)
    return [plain(name, 24) for name in results.classes]
