"""The figures of a run: results.json, and the text that closes the log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from data_shards.errors import DataShardsError
from data_shards.system.files import read_json, write_synced
from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.errors import DataError

FORMAT = 1
SELECTS = {
    "accuracy": "the accuracy",
    "worst_group": "the accuracy of the worst group",
    "conflicting": "the accuracy on conflicting images",
    "unbiased": "the mean accuracy over cells of class and texture cluster",
}
"""The values of ``evaluate.select``, in words."""
LARGEST = 256 << 20
"""Most bytes of results.json: a confusion of 1,000 classes takes some MB."""


def judged_network(config: Config) -> str:
    """Return the network whose accuracy is the run's: f, or g where the method has no f."""
    return "f" if config.has_f else "g0"


def choosing_split(config: Config) -> str:
    """Return the name of the split that chooses the best checkpoint."""
    return "selection" if config.data.selection != "none" else config.evaluate.monitor


def chosen_figure(config: Config, splits: Mapping[str, Any]) -> float:
    """Return the accuracy that chooses the best checkpoint, see ``evaluate.select``."""
    found = selected(config, splits[choosing_split(config)]["networks"][judged_network(config)])
    assert found is not None  # checked before the first step
    return found


def selected(config: Config, score: Mapping[str, Any]) -> float | None:
    """Return that figure of a network which ``evaluate.select`` names; None if it has none."""
    found = score[config.evaluate.select]
    if config.evaluate.select == "worst_group" and found is not None:
        found = found["accuracy"]
    return None if found is None else float(found)


def assemble(
    config: Config,
    classes: Sequence[str],
    checkpoints: Mapping[str, Any],
    steps: int,
    lost: Mapping[str, str],
    rule: BiasRule,
) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        config: of the run.
        classes: names, by label.
        checkpoints: figures of ``last`` and ``best``.
        steps: optimizer steps taken.
        lost: a checkpoint that has no figures because it is damaged, and what is wrong with it.
        rule: which value of the bias goes with each class.
    """
    return {
        "format": FORMAT,
        "run": config.name,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "classes": list(classes),
        "bias": rule.model_dump(),
        "chosen_on": "oracle" if config.data.selection == "none" else "selection",
        "select": config.evaluate.select,
        "steps": steps,
        "checkpoints": dict(checkpoints),
        "lost": dict(lost),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results.json whole."""
    write_synced(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Read results.json.

    Raises:
        DataError: it is damaged or of another format.
    """
    try:
        content = read_json(path, LARGEST)
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']!r} is not read, only {FORMAT}")
    except (DataShardsError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the results of a run ({error})") from None
    return dict(content)


def choice_name(content: Mapping[str, Any], choice: str) -> str:
    """Return the name of ``last`` or ``best``: ``oracle`` for a best one that test data chose."""
    return "oracle" if choice == "best" and content["chosen_on"] == "oracle" else choice


def table(checkpoints: Mapping[str, Mapping[str, Any]], chance: float) -> str:
    """Return the accuracies as text, a row for each checkpoint, split and network."""
    with_bias = any(
        score.get("groups")
        for found in checkpoints.values()
        for figures in found["splits"].values()
        for score in figures["networks"].values()
    )
    rows = [
        {
            "checkpoint": choice,
            "step": found["step"],
            "split": split,
            "images": f"{figures['samples']:,}",
            "network": network,
            "accuracy": f"{score['accuracy']:.3f} ±{score['standard_error']:.3f}",
            "unbiased": "–" if score["unbiased"] is None else f"{score['unbiased']:.3f}",
            **(_of_bias(score) if with_bias else {}),
        }
        for choice, found in checkpoints.items()
        for split, figures in found["splits"].items()
        for network, score in figures["networks"].items()
    ]
    notes = [
        f"chance {chance:.3f}; ± is the binomial standard error",
        "unbiased: mean over cells of class and texture cluster, where there are clusters",
    ]
    return "\n".join([tabulate(rows, headers="keys", disable_numparse=True), *notes])


def _of_bias(score: Mapping[str, Any]) -> dict[str, str]:
    intervals, worst_group = score["intervals"], _bounded(None, None)
    if worst := score["worst_group"]:
        shown = _bounded(worst["accuracy"], worst["interval"])
        worst_group = f"{shown} {worst['class']}, {worst['value']}"
    return {
        "aligned": _bounded(score["aligned"], intervals["aligned"]),
        "conflicting": _bounded(score["conflicting"], intervals["conflicting"]),
        "worst group": worst_group,
    }


def _bounded(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def closing_text(content: Mapping[str, Any], folder: Path) -> str:
    """Return the text that a run logs at its end."""
    by = SELECTS[content["select"]]
    note = {
        "selection": f"best: chosen on selection data by {by}",
        "oracle": f"oracle: chosen on the test data themselves by {by}; report last",
    }
    named = {choice_name(content, choice): c for choice, c in content["checkpoints"].items()}
    events = folder / "tensorboard"
    return "\n".join(
        [
            f"finished after {content['steps']} steps; test accuracies:",
            table(named, 1 / len(content["classes"])),
            note[content["chosen_on"]],
            *([f"tensorboard --logdir {events}"] if events.exists() else []),
        ]
    )
