"""The figures of checkpoints as text for a terminal and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rebias_dist.evaluation.corruptions import BENCHMARK, SEVERITIES
from rebias_dist.evaluation.unbiased import SMALLEST_CELL

CHOICES = {
    "last": "last",
    "best": "best on selection data",
    "oracle": "ORACLE, chosen on the test data themselves; report last",
    "step": "a step that was asked for",
    "public": "of the public code",
}
_ABSENT = "–"
_HEAD = (
    "split",
    "images",
    "chance",
    "network",
    "accuracy",
    "worst class",
    "unbiased",
    "conflicting",
    "worst group",
    "ECE",
    "HSIC with f",
)
_LONGEST = 24  # characters of a name of a class


def text(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """Return a block of text for each checkpoint, with what the figures mean at the end."""
    blocks = [_block(found) for found in evaluated]
    notes = [
        "accuracy: in percent, with a 95 % bootstrap interval over the images of the split; other "
        "seeds vary more",
        f"unbiased: mean over cells of class and texture cluster with {SMALLEST_CELL} images or "
        f"more; worst group: of class and bias, {SMALLEST_CELL} or more",
        "conflicting: images whose bias is another class's; ECE: expected calibration error",
        "HSIC: of f's and g's features, ± its spread for independent ones",
    ]
    return "\n\n".join([*blocks, "\n".join(notes)])


def _block(found: Mapping[str, Any]) -> str:
    head = f"{found['checkpoint']}: {CHOICES[found['choice']]}, step {found['step']}"
    head += f", {found['method']}" + ("" if found["finished"] else ", UNFINISHED run")
    rows = [list(_HEAD)]
    for split, figures in found["splits"].items():
        classes = figures["classes"]
        for number, (network, of_network) in enumerate(figures["networks"].items()):
            known = sum(share is not None for share in of_network["by_class"])
            first = [split, f"{figures['samples']:,}", f"{100 / len(classes):.1f}"]
            if known < len(classes):
                first[1] += f" in {known} classes"
            about = first if number == 0 else ["", "", ""]
            cells = _cells(of_network, classes)
            rows.append([*about, network, *cells, _hsic(figures, network)])
    lines = [head, *_aligned(rows)]
    for network, of_network in found["corruptions"].items():
        lines += ["", f"corruptions, {network}, accuracy in percent by severity:"]
        lines += _corruptions(of_network)
    return "\n".join(lines)


def _cells(of_network: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    worst, group = of_network["worst_class"], of_network["worst_group"]
    intervals = of_network["intervals"]
    return [
        _percent(of_network["accuracy"], intervals["accuracy"]),
        f"{_percent(worst['accuracy'])} {classes[worst['label']][:_LONGEST]}" if worst else _ABSENT,
        _percent(of_network["unbiased"], intervals["unbiased"]),
        _percent(of_network["conflicting"], intervals["conflicting"]),
        f"{_percent(group['accuracy'])} {classes[group['label']][:_LONGEST]}/{group['bias']}"
        if group
        else _ABSENT,
        _percent(of_network["calibration"]["ece"]),
    ]


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return _ABSENT
    shown = f"{100 * value:.1f}"
    return f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else shown


def _hsic(figures: Mapping[str, Any], network: str) -> str:
    if network == "f":
        return ""
    index = [name for name in figures["networks"] if name != "f"].index(network)
    value, noise = figures["hsic"][index], figures["hsic_noise"][index]
    if value is None:
        return _ABSENT
    return f"{value:.2g}" + ("" if noise is None else f" ± {noise:.1g}")


def _corruptions(of_network: Mapping[str, Any]) -> list[str]:
    severities = list(map(str, range(1, SEVERITIES + 1)))
    rows = [["corruption", *severities, "mean"]]
    for name, found in of_network["corruptions"].items():
        cells = [_percent(found["severities"].get(severity)) for severity in severities]
        rows.append([name if name in BENCHMARK else f"({name})", *cells, _percent(found["mean"])])
    means = [_percent(of_network["severities"][severity]) for severity in severities]
    rows.append(["mean", *means, _percent(of_network["mean"])])
    lines = _aligned(rows)
    every = len(BENCHMARK) * SEVERITIES
    if of_network["splits"] < every:
        lines.append(f"INCOMPLETE: {of_network['splits']} of the benchmark's {every} splits")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


# ---------------------------------------------------------------------------- CSV

_COLUMNS = ("checkpoint", "choice", "step", "split", "network", "figure", "value", "low", "high")


def as_csv(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """Return all figures but the matrices, one a line; a value that does not exist is empty."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    for found in evaluated:
        of_checkpoint = [found["checkpoint"], found["choice"], found["step"]]
        for split, figures in found["splits"].items():
            for network, of_network in figures["networks"].items():
                for figure, value, interval in _figures(figures["classes"], of_network):
                    bounds = interval or ("", "")
                    shown = "" if value is None else value
                    table.writerow([*of_checkpoint, split, network, figure, shown, *bounds])
            for name in ("hsic", "hsic_noise", "cka"):
                for index, value in enumerate(figures[name]):
                    shown = "" if value is None else value
                    table.writerow([*of_checkpoint, split, f"g{index}", name, shown, "", ""])
        for network, summary in found["corruptions"].items():
            for name, value in _means(summary):
                shown = "" if value is None else value
                table.writerow([*of_checkpoint, "corruptions", network, name, shown, "", ""])
    return stream.getvalue()


def _figures(
    classes: Sequence[str], of_network: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Sequence[float] | None]]:
    intervals = of_network["intervals"]
    for name in ("accuracy", "unbiased", "aligned", "conflicting", "follows_bias"):
        yield name, of_network[name], intervals.get(name)
    yield "ece", of_network["calibration"]["ece"], None
    for name in ("worst_class", "worst_group"):
        yield name, of_network[name] and of_network[name]["accuracy"], None
    for label, value in enumerate(of_network["by_class"]):
        yield f"accuracy of {classes[label]}", value, intervals["by_class"][label]
    for number, clustering in enumerate(of_network["clusterings"], 1):
        yield f"unbiased by clustering {number}", clustering["accuracy"], None


def _means(summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield "mean", summary["mean"]
    for severity, value in summary["severities"].items():
        yield f"mean of severity {severity}", value
    for name, found in summary["corruptions"].items():
        yield f"mean of {name}", found["mean"]
