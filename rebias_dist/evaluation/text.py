"""The figures of checkpoints as text for a terminal and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rebias_dist.config.bias import BiasRule
from rebias_dist.evaluation.corruptions import BENCHMARK, SEVERITIES
from rebias_dist.evaluation.groups import (
    SMALL,
    is_small,
    left_out,
    name_of,
    shown_groups,
    worst_mark,
)
from rebias_dist.evaluation.unbiased import SMALLEST_CELL
from rebias_dist.runs.results import SELECTS

CHOICES = {
    "last": "last",
    "best": "best on selection data",
    "oracle": "ORACLE, chosen on the test data themselves; report last",
    "step": "the step that was asked for",
    "public": "of the public code",
}
_ABSENT = "–"
WATERMARKED = "+watermark"
"""Ends the name of a split whose images have the watermark of ImageNet-W. It stands here because a
report imports this module and imports no torch."""
_CARTON = "carton"  # the class for which ImageNet's networks take the watermark
_LONGEST = 24  # characters of a name of a class
_NOTES = f"""\
accuracy: in percent, with a 95 % bootstrap interval over the images (Wilson's if all or none are
right); other seeds vary more
unbiased: mean over cells of class and texture cluster with {SMALLEST_CELL} images or more
worst group: of class and bias, the lowest accuracy with {SMALLEST_CELL} images or more; groups \
have Wilson's interval
aligned: images with the bias that goes with their class; conflicting: with another one
ECE: expected calibration error
HSIC: of the features of f and g, ± its spread for independent features"""


def choice_text(choice: str, select: str | None) -> str:
    """Return how a checkpoint was chosen, and by which figure if that is not the accuracy."""
    if select in (None, "accuracy") or choice not in ("best", "oracle"):
        return CHOICES[choice]
    return f"{CHOICES[choice]} (by {SELECTS[str(select)]})"


def text(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """Return a block of text for each checkpoint, and notes on the figures at the end."""
    return "\n\n".join([*map(_block, evaluated), _NOTES])


def _block(found: Mapping[str, Any]) -> str:
    head = f"{found['checkpoint']}: {choice_text(found['choice'], found['select'])}"
    head += f", step {found['step']}"
    head += f", {found['method']}" + ("" if found["finished"] else ", UNFINISHED run")
    rows = [row for split, figures in found["splits"].items() for row in _rows(split, figures)]
    lines = [head, _table(rows)]
    for split, figures in found["splits"].items():
        groups = next(iter(figures["networks"].values()))["groups"]  # those of all networks
        lines += filter(None, [left_out(groups, split)])
    if found["bias"]["aligned"]:
        rule = BiasRule.model_validate(found["bias"])
        lines += ["", f"bias: {rule.text()}", *([rule.doubt] if rule.doubt else [])]
    for split, figures in found["splits"].items():
        for network, score in figures["networks"].items():
            if score["groups"]:
                lines += ["", *groups_table(f"{split}, {network}", score["groups"])]
    lines += _watermark(found["splits"])
    for network, of_network in found["corruptions"].items():
        lines += ["", f"corruptions, {network}, accuracy in percent by severity:"]
        lines += [_table(_corruptions(of_network))]
        every = len(BENCHMARK) * SEVERITIES
        if of_network["splits"] < every:
            lines.append(f"INCOMPLETE: {of_network['splits']} of the benchmark's {every} splits")
    return "\n".join(lines)


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    return tabulate([*rows], headers="keys", disable_numparse=True)


def _rows(split: str, figures: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    classes = figures["classes"]
    for index, (network, score) in enumerate(figures["networks"].items()):
        known = sum(share is not None for share in score["by_class"])
        images = f"{figures['samples']:,}"
        images += f" in {known} classes" if known < len(classes) else ""
        worst, group, intervals = score["worst_class"], score["worst_group"], score["intervals"]
        about = {"split": split, "images": images, "chance": f"{100 / len(classes):.1f}"}
        mark = worst_mark(score["groups"])
        yield {
            **(about if index == 0 else dict.fromkeys(about, "")),
            "network": network,
            "accuracy": _percent(score["accuracy"], intervals["accuracy"]),
            "worst class": f"{_percent(worst['accuracy'])} {classes[worst['label']][:_LONGEST]}"
            if worst
            else _ABSENT,
            "unbiased": _percent(score["unbiased"], intervals["unbiased"]),
            "aligned": _percent(score["aligned"], intervals["aligned"]),
            "conflicting": _percent(score["conflicting"], intervals["conflicting"]),
            "worst group": f"{_percent(group['accuracy'], group['interval'], mark)} "
            f"{group['class'][:_LONGEST]}/{group['value'][:_LONGEST]}"
            if group
            else f"{_ABSENT}{mark}",
            "ECE": _percent(score["calibration"]["ece"]),
            "HSIC with f": _hsic(figures, network),
        }


def groups_table(title: str, groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a title and a table of groups as text, the worst first; of many only the worst."""
    shown, note = shown_groups(groups)
    rows = (
        {
            "class": group["class"][:_LONGEST],
            "bias": group["value"][:_LONGEST],
            "images": f"{group['samples']:,}{SMALL * is_small(group)}",
            "accuracy": _percent(group["accuracy"], group["interval"]),
        }
        for group in shown
    )
    return [f"{title}: {note or 'groups'}", _table(rows)]


def _percent(value: float | None, interval: Sequence[float] | None = None, mark: str = "") -> str:
    if value is None:
        return _ABSENT
    shown = f"{100 * value:.1f}{mark}"
    return f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else shown


def _hsic(figures: Mapping[str, Any], network: str) -> str:
    if not network.startswith("g"):
        return ""
    index = [name for name in figures["networks"] if name.startswith("g")].index(network)
    value, noise = figures["hsic"][index], figures["hsic_noise"][index]
    if value is None:
        return _ABSENT
    return f"{value:.2g}" + ("" if noise is None else f" ± {noise:.1g}")


def _watermark(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines that say what the watermark changes: ImageNet-W's gaps."""
    for split, figures in splits.items():
        marked = splits.get(split + WATERMARKED)
        if marked is None:
            continue
        for network, score in figures["networks"].items():
            there = marked["networks"][network]
            found = f"accuracy {100 * (there['accuracy'] - score['accuracy']):+.1f}"
            carton = _by_class(figures["classes"], score).get(_CARTON)
            if carton is not None:
                of_carton = _by_class(figures["classes"], there)[_CARTON]
                found += f", that of {_CARTON} {100 * (of_carton - carton):+.1f}"
            yield ""
            yield f"watermark on {split}, {network}: {found} percentage points"


def _by_class(classes: Sequence[str], score: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(classes, score["by_class"], strict=True))


def _corruptions(of_network: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, found in {**of_network["corruptions"], "mean": of_network}.items():
        yield {
            "corruption": name if name in (*BENCHMARK, "mean") else f"({name})",
            **{
                str(severity): _percent(found["severities"].get(str(severity)))
                for severity in range(1, SEVERITIES + 1)
            },
            "mean": _percent(found["mean"]),
        }


def as_csv(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """Return all figures but the matrices, one a line; a value that does not exist is empty."""
    import pandas as pd  # a second, which the other formats need not wait for

    columns = ["checkpoint", "choice", "step", "split", "network", "figure", "value", "low", "high"]
    rows = (
        [found["checkpoint"], found["choice"], found["step"], *row, *(interval or (None, None))]
        for found in evaluated
        for *row, interval in _figures(found)
    )
    return pd.DataFrame(rows, columns=columns, dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any, Any]]:
    """Yield split, network, name, value and interval of each figure of a checkpoint."""
    for split, figures in found["splits"].items():
        for network, score in figures["networks"].items():
            for name, value, interval in _scores(figures["classes"], score):
                yield split, network, name, value, interval
        for name in ("hsic", "hsic_noise", "cka"):
            for index, value in enumerate(figures[name]):
                yield split, f"g{index}", name, value, None
    for network, summary in found["corruptions"].items():
        means = {"mean": summary["mean"]}
        means |= {f"mean of severity {s}": value for s, value in summary["severities"].items()}
        means |= {f"mean of {name}": one["mean"] for name, one in summary["corruptions"].items()}
        for name, value in means.items():
            yield "corruptions", network, name, value, None


def _scores(classes: Sequence[str], score: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    intervals = score["intervals"]
    for name in ("accuracy", "unbiased", "aligned", "conflicting", "follows_bias"):
        yield name, score[name], intervals.get(name)
    yield "ece", score["calibration"]["ece"], None
    for name in ("worst_class", "worst_group"):
        found = score[name] or {}
        yield name, found.get("accuracy"), found.get("interval")
    for group in score["groups"]:
        yield f"accuracy of group {name_of(group)}", group["accuracy"], group["interval"]
    for label, value in enumerate(score["by_class"]):
        yield f"accuracy of {classes[label]}", value, intervals["by_class"][label]
    for number, clustering in enumerate(score["clusterings"], 1):
        yield f"unbiased by clustering {number}", clustering["accuracy"], None
