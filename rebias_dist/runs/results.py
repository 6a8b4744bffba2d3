"""The figures of a run: results.json, and the text that closes the log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
