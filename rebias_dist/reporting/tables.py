"""The tables of a report, as texts in a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rebias_dist.evaluation.corruptions import BENCHMARK, EXTRA, SEVERITIES, is_corruption
from rebias_dist.evaluation.groups import FEW, SMALL, WORST, is_small, shown_groups
from rebias_dist.evaluation.text import choice_text
from rebias_dist.evaluation.unbiased import SMALLEST_CELL
from rebias_dist.methods.registry import METHODS
from rebias_dist.reporting.comparison import ABSENT, MARK, MARK_NOTE, Comparison, Group, leads, mark
from rebias_dist.reporting.frame import Figure, over_seeds
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published
from rebias_dist.reporting.runs import plain

_NAME = "method and setting"
_WORST_GROUP = (
    "worst group: the lowest accuracy of a group of class and bias, among those of "
    f"{SMALLEST_CELL} or more images; in each run its own."
)
_MOST_CLASSES = 30  # of a matrix that is shown whole; of a larger one its worst cells


@dataclass
class Table:
    """A table with a caption; a line end in a cell divides a figure from its interval."""

    caption: str
    body: pd.DataFrame
    words: int
    """How many of the first columns are words; the others are numbers."""
    notes: Sequence[str] = ()
    published: int = 0
    """How many of the last rows are published figures."""
    heat: NDArray[np.float64] | None = None
    """How strongly the cells of numbers are coloured, 0 to 1; NaN for no colour."""


def results_table(runs: Comparison) -> Table:
    """Return every accuracy: a row for each setting, checkpoint and network."""
    of_cells = set(runs.frame.dropna(subset="unbiased")["split"])
    clustered = [split for split in runs.splits if split in of_cells]
    columns = {_title(split, sizes): (split, "accuracy") for split, sizes in runs.splits.items()}
    columns |= {f"{plain(split, 60)}, unbiased": (split, "unbiased") for split in clustered}
    grouped = [split for split in runs.splits if split in runs.grouped]
    columns |= {f"{plain(split, 60)}, worst group": (split, "worst_group") for split in grouped}
    rows = []
    for group in runs.groups:
        name = group.marked
        for checkpoint in group.checkpoints if group.runs else ():
            for network in group.networks:
                figures = [runs.text(group, checkpoint, s, network, m) for s, m in columns.values()]
                chosen = choice_text(checkpoint, group.config.evaluate.select)
                about = (name, chosen, network, group.seeds(checkpoint))
                rows.append((*about, *figures))
        if not group.runs:
            why = "; ".join(f"{plain(run.name)}: {run.problem}" for run in group.without)
            rows.append((name, f"no results\n{why}", ABSENT, "0", *[ABSENT] * len(columns)))
    notes = [
        "a ± b: mean and standard deviation over seeds; below it Student's 95 % interval of "
        "the mean, cut at 0 and 100. a (b): one seed with its binomial standard error; below it "
        "Wilson's 95 % interval, which says nothing of other seeds."
    ]
    if clustered:
        notes.append("unbiased: mean over cells of class and texture cluster.")
    if grouped:
        notes += [_WORST_GROUP, *runs.left_out(grouped)]
    notes += _legend(name for name, *_ in rows)
    caption = "Accuracy in percent: last checkpoint, best on selection data, and oracle if marked"
    body = pd.DataFrame(rows, columns=[_NAME, "checkpoint", "net", "seeds", *columns])
    return Table(caption, body, 3, notes)


def _legend(names: Iterable[str]) -> list[str]:
    """Return what the mark means, if a name has it."""
    return [MARK_NOTE] if any(name.endswith(MARK) for name in names) else []


def _title(split: str, sizes: Sequence[int]) -> str:
    samples = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    return f"{plain(split, 60)} (n = {samples})"


def measures_table(runs: Comparison) -> Table | None:
    """Return the measures of bias beside the accuracy; None where no run tells any of them."""
    measures = {
        "aligned": "aligned",
        "conflicting": "conflicting",
        "worst group": "worst_group",
        "follows the bias": "follows_bias",
        "worst class": "worst_class",
        "ECE": "ece",
        "HSIC with f × 1000": "hsic",
    }
    rows = []
    for group in runs.groups:
        for network in group.networks:
            figures = {
                title: runs.text(group, group.counting, runs.judged_split, network, measure)
                for title, measure in measures.items()
            }
            if set(figures.values()) != {ABSENT}:
                rows.append({_NAME: plain(group.label, 200), "net": network, **figures})
    caption = f"How the bias shows on {plain(runs.judged_split, 30)}, in percent"
    note = (
        "Figures of the checkpoint that counts. aligned: accuracy where the bias is that which "
        "goes with the class. conflicting: where it is another one. follows the bias: the part of "
        "these images that is taken for a class which goes with their bias. worst class: its "
        f"accuracy. {_WORST_GROUP} ECE: expected "
        "calibration error. Mean ± standard deviation over seeds, below it Student's 95 % "
        "interval of the mean; – : not there, or not recorded."
    )
    notes = [note, *runs.left_out([runs.judged_split])]
    return Table(caption, pd.DataFrame(rows), 2, notes) if rows else None


def groups_table(runs: Comparison) -> Table | None:
    """Return each group's accuracy on the split that tells bias, counts summed over the seeds.

    None where no run tells groups.
    """
    rows, many = [], 0
    for group in runs.groups:
        for network in group.networks:
            groups = runs.groups_of(group, network)
            shown, _ = shown_groups(groups)
            many = max(many, len(groups))
            for one in shown:
                low, high = one["interval"]
                rows.append(
                    {
                        _NAME: plain(group.label, 200),
                        "net": network,
                        "class": one["class"],
                        "bias": one["value"],
                        "images": f"{one['samples']:,}{SMALL * is_small(one)}",
                        "accuracy": f"{100 * one['accuracy']:.1f}\n{100 * low:.1f} to "
                        f"{100 * high:.1f}",
                    }
                )
    caption = f"Accuracy in percent by group of class and bias on {plain(runs.judged_split, 30)}"
    notes = [
        "Figures of the checkpoint that counts, the worst group first; images and right "
        "predictions are summed over the seeds. Below: Wilson's 95 % interval, which says nothing "
        f"of other seeds. Groups of fewer than {SMALLEST_CELL} images in a run come last, marked "
        f"{SMALL}, and are no worst group.",
        *runs.left_out([runs.judged_split]),
    ]
    notes += [f"aligned: {plain(text, 1000)}" for text in runs.rules]
    if many > FEW:
        notes.append(f"Shown are the worst {WORST} of up to {many} groups.")
    return Table(caption, pd.DataFrame(rows), 4, notes) if rows else None


def leads_table(runs: Comparison) -> Table | None:
    """Return each method's lead over vanilla; None where there is nothing to compare."""
    rows = []
    names = {group.label: group.marked for group in runs.groups}
    for setting, *lead in leads(runs.frame, runs.judged_split).itertuples(name=None):
        one = Figure(*lead)
        reading = "better" if one.low > 0 else "worse" if one.high < 0 else "not told apart"
        interval = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
        if len(one.values) == 1:
            reading, interval = "one seed decides nothing", ABSENT
        figures = (f"{100 * one.mean:+.1f}", interval, str(len(one.values)))
        rows.append((names[setting], reading, *figures))
    columns = [_NAME, "reading", "lead", "95 % interval", "seeds in common"]
    note = (
        "Differences seed by seed between f of the method and f of vanilla under the same "
        "setting, with the checkpoint that counts; Student's 95 % interval. It is wide with few "
        "seeds, and one in twenty excludes 0 by chance where nothing differs."
    )
    caption = f"Lead over vanilla on {plain(runs.judged_split, 30)}, in percentage points"
    notes = [note, *_legend(name for name, *_ in rows)]
    return Table(caption, pd.DataFrame(rows, columns=columns), 2, notes) if rows else None


_MNIST = "The accuracy is that of f; for the method biased it is that of g."
_NINE = f"""unbiased: the mean over cells of class and texture cluster with at least 10 validation
images, over three clusterings; – where the validation shards had no clusters. {_MNIST}"""
_THEIRS = """A table below lists what differs from the published experiments. If anything does, the
rows do not compare two codes. Published figures of one method differ by their source, which the
second column names."""
_WITHOUT_THEIRS = """Published figures are left out, for these runs are not the published
experiment; rebias-report --published shows them."""


def published_table(runs: Comparison, *, with_published: bool = True) -> Table | None:
    """Return our accuracies above those published; None for another data set or other splits.

    ``with_published``: have those published; without them the table says how to get them.
    """
    known = published()
    known = known[(known["dataset"] == runs.dataset) & with_published]
    if runs.dataset == "biased_mnist" and "unbiased" in runs.splits:
        caption, note = (
            "Biased-MNIST: accuracy on unbiased in percent, by ρ of the training set",
            _MNIST,
        )
        rhos = {*known["rho"], *(group.rho for group in runs.groups)}
        ordered = [*sorted(rhos - {None}, reverse=True), *(rhos & {None})]
        # By title: ρ, split and measure of our figures, and the value of `key` of those published.
        columns = {
            "ρ unknown" if rho is None else f"ρ\u00a0{rho:g}": (rho, "unbiased", "accuracy", rho)
            for rho in ordered
        }
        key = "rho"
    elif runs.dataset == "imagenet9":
        caption, note = "9-class ImageNet: accuracy in percent", _NINE
        names = {split.lower().replace("-", "").replace("_", ""): split for split in runs.splits}
        hard = names.get("imageneta", names.get("imagenet9a", ""))
        columns = {
            "validation (biased)": (None, "val", "accuracy", "biased"),
            "unbiased": (None, "val", "unbiased", "unbiased"),
            "ImageNet-A": (None, hard, "accuracy", "imagenet-a"),
        }
        key = "measure"
    else:
        return None
    rows = []
    of_series = {(group.series, group.rho): group for group in runs.groups}
    for series in dict.fromkeys(group.series for group in runs.groups):
        example = next(group for group in runs.groups if group.series == series)
        for checkpoint in example.checkpoints:
            name = mark(plain(series, 200), example.config.facts)
            chosen = choice_text(checkpoint, example.config.evaluate.select)
            row = {"method": name, "source": f"here, {chosen}"}
            for title, (rho, split, measure, _) in columns.items():
                row[title] = ABSENT
                if group := of_series.get((series, rho)):
                    row[title] = runs.text(group, checkpoint, split, group.judged_network, measure)
            rows.append(row)
    # Those of a method stand together, for they differ from source to source.
    labels = list(known["label"].unique())
    known = known.sort_values("label", key=lambda found: found.map(labels.index), kind="stable")
    theirs = [
        {"method": mark(str(label), METHODS.get(str(method))), "source": str(source)}
        | {title: _percent(found, key, column[-1]) for title, column in columns.items()}
        for (label, method, source), found in known.groupby(
            ["label", "method", "source"], sort=False
        )
    ]
    body = pd.DataFrame([*rows, *theirs])
    told = [note, _THEIRS if with_published else _WITHOUT_THEIRS]
    notes = [*(line.replace("\n", " ") for line in told), *_legend(body["method"])]
    return Table(caption, body, 2, notes, len(theirs))


def _percent(found: pd.DataFrame, key: str, wanted: object) -> str:
    percents = found.loc[found[key] == wanted, "percent"]
    return ABSENT if percents.empty else f"{percents.iloc[0]:.1f}"


def corruption_table(runs: Comparison) -> Table | None:
    """Return accuracies by corruption and severity, with means; None without ImageNet-C."""
    frame = runs.frame[runs.frame["counts"]].dropna(subset="split")
    frame = frame[frame["split"].map(is_corruption)]
    if frame.empty:
        return None
    parts = frame["split"].str.rsplit("-", n=1, expand=True)
    frame = frame.assign(corruption=parts[0], severity=parts[1])
    of_run = ["setting", "network", "folder"]
    wide = frame.pivot(index=[*of_run, "corruption"], columns="severity", values="accuracy")
    wide = wide.assign(mean=wide.mean(axis=1))
    # Four corruptions of ImageNet-C are meant for validation: they count in no mean.
    counted = wide[wide.index.isin(BENCHMARK, level="corruption")]
    splits = counted.drop(columns="mean").count(axis=1).groupby(of_run).sum()
    means = counted.groupby(of_run).mean()
    every = len(BENCHMARK) * SEVERITIES
    means["corruption"] = [f"mean of {n} of {every} splits" for n in splits]
    both = pd.concat([wide, means.set_index("corruption", append=True)])
    long = both.melt(var_name="severity", ignore_index=False).dropna().reset_index()
    figures = over_seeds(long, ["setting", "network", "corruption", "severity"])
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for (*where, severity), *figure in figures.itertuples(name=None):
        cells.setdefault(tuple(where), {})[severity] = Figure(*figure).text(interval=False)
    order = [*BENCHMARK, *EXTRA, *means["corruption"].unique()]
    rows = [
        {
            _NAME: plain(group.label, 200),
            "net": network,
            "corruption": f"({name})" if name in EXTRA else name,
            **cells[group.label, network, name],
        }
        for group in runs.groups
        for network in group.networks
        for name in order
        if (group.label, network, name) in cells
    ]
    severities = map(str, range(1, SEVERITIES + 1))
    body = pd.DataFrame(rows, columns=[_NAME, "net", "corruption", *severities, "mean"])
    note = (
        "Figures of the checkpoint that counts. mean: over severities; in the last row over the "
        "benchmark's 15 corruptions, as far "
        "as they are there. In parentheses: corruptions that count in no other mean. "
        "Mean ± standard deviation over seeds; – : not there."
    )
    caption = "ImageNet-C: accuracy in percent by corruption and severity"
    return Table(caption, body.fillna(ABSENT), 3, [note])


def departures_table(runs: Comparison, source: str) -> Table | None:
    """Return a row for each setting that differs from the published protocol; None without any."""
    here: dict[tuple[str, str], dict[str, list[Group]]] = {}
    for group in runs.groups:
        for one in departures(group) or []:
            values = here.setdefault((one.key, one.published), {})
            values.setdefault(plain(one.here), []).append(group)
    rows = []
    for (key, known), values in here.items():
        everywhere = [len(groups) for groups in values.values()] == [len(runs.groups)]
        texts = [
            value if everywhere else f"{value} ({_names(groups, runs.groups)})"
            for value, groups in values.items()
        ]
        rows.append({"setting": key, "here": "; ".join(texts), "published": known})
    note = "Computed from each run's configuration and test set; seeds are not compared."
    caption = f"What differs from the published protocol ({source})"
    return Table(caption, pd.DataFrame(rows), 3, [note]) if rows else None


def _names(some: Sequence[Group], every: Sequence[Group]) -> str:
    """Return the labels of groups; a method of which all groups are meant is named once."""
    others = {one.config.method.name for one in every if one not in some}
    labels = (
        one.label if one.config.method.name in others else one.config.method.name for one in some
    )
    return " / ".join(plain(label) for label in dict.fromkeys(labels))


def matrices(runs: Comparison, group: Group) -> Iterator[Table]:
    """Yield confusion and accuracy by bias of f and of the first g, on the split that tells bias.

    Counts are summed over the seeds. A matrix that no run tells is left out.
    """
    first = next(run.results for run in group.runs if run.results)
    classes, split = [plain(name, 24) for name in first.classes], plain(runs.judged_split, 30)
    for network in ("f", "g0"):
        scores = runs.scores(group, network)
        confusion = _sum([score.confusion for score in scores])
        count = _sum([score.bias_count for score in scores])
        right = _sum([score.bias_correct for score in scores])
        caption = f"{network}: label (row) × prediction, {split}, counts over all seeds"
        if confusion is not None and len(classes) > _MOST_CLASSES:
            body = _worst_confusions(confusion, classes)
            yield Table(f"{caption}; the 20 most frequent errors", body, 2)
        elif confusion is not None:
            shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
            body = pd.DataFrame(confusion, columns=classes).map("{:,}".format)
            body.insert(0, "", classes, allow_duplicates=True)
            yield Table(caption, body, 1, heat=shares)
        if count is None or right is None or not count.any() or len(count) != len(classes):
            continue
        if max(count.shape) <= _MOST_CLASSES:
            shares = np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0)
            body = pd.DataFrame(100 * shares).map("{:.0f}".format, na_action="ignore")
            names = [plain(name, 24) for name in first.values(scores[0])]
            body = body.fillna(ABSENT).set_axis(names[: count.shape[1]], axis=1)
            body.insert(0, "", classes, allow_duplicates=True)
            caption = f"{network}: accuracy in percent by label (row) × bias, {split}"
            note = f"{plain(first.rule.text(), 1000)}. – : no such image."
            yield Table(caption, body, 1, [note], heat=shares)


def _worst_confusions(counts: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    wrong = counts - np.diag(counts.diagonal())
    worst = np.argsort(-wrong, axis=None, kind="stable")[:20]
    rows = [
        (classes[label], classes[said], f"{wrong[label, said]:,}")
        for label, said in zip(*np.unravel_index(worst, wrong.shape), strict=True)
        if wrong[label, said]
    ]
    return pd.DataFrame(rows, columns=["label", "prediction", "images"])


def _sum(found: Sequence[list[list[int]]]) -> NDArray[np.int64] | None:
    """Return the sum of the matrices; None if there is none or they differ in shape."""
    arrays = [np.array(matrix, dtype=np.int64) for matrix in found if matrix]
    alike = len({array.shape for array in arrays}) == 1
    return np.sum(arrays, axis=0, dtype=np.int64) if alike else None
