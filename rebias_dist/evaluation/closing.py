"""The text that closes the log of a run: its final figures as a table, and by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.evaluation import groups
from rebias_dist.evaluation.unbiased import SMALLEST_CELL
from rebias_dist.runs.results import SELECTS, choice_name, judged_network


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
    # A split has the same groups whichever checkpoint and network is tested on it.
    tested = {
        split: score.get("groups", [])
        for found in checkpoints.values()
        for split, figures in found["splits"].items()
        for score in figures["networks"].values()
    }
    notes += filter(None, (groups.left_out(of, split) for split, of in tested.items()))
    return "\n".join([tabulate(rows, headers="keys", disable_numparse=True), *notes])


def _of_bias(score: Mapping[str, Any]) -> dict[str, str]:
    intervals, mark = score["intervals"], groups.worst_mark(score["groups"])
    worst_group = _bounded(None, None, mark)
    if worst := score["worst_group"]:
        shown = _bounded(worst["accuracy"], worst["interval"], mark)
        worst_group = f"{shown} {worst['class']}, {worst['value']}"
    return {
        "aligned": _bounded(score["aligned"], intervals["aligned"]),
        "conflicting": _bounded(score["conflicting"], intervals["conflicting"]),
        "worst group": worst_group,
    }


def _bounded(value: float | None, interval: Sequence[float] | None, mark: str = "") -> str:
    if value is None:
        return f"–{mark}"
    return f"{value:.3f}{mark}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


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


def closing_groups(config: Config, final: dict[str, Any]) -> Iterator[str]:
    """Yield lines on the groups of the run's network; none without bias labels."""
    if final["bias"]["values"]:
        yield f"bias: {BiasRule.model_validate(final['bias']).text()}"
        yield f"worst group: of {SMALLEST_CELL} images or more; Wilson's 95 % intervals"
    network = judged_network(config)
    told: set[int] = set()
    for choice, found in final["checkpoints"].items():
        name = choice_name(final, choice)
        if found["step"] in told:  # the best checkpoint is the last one
            continue
        told.add(found["step"])
        for split, figures in found["splits"].items():
            judged = {"networks": {network: figures["networks"][network]}}
            yield from groups.lines(f"{name}, {split}", judged)
