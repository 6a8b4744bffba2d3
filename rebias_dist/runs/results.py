"""The figures of a run: results.json, and what the log says at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards.files import write_synced
from rebias_dist.config.schema import Config
from rebias_dist.errors import DataError

FORMAT = 1


def judged_network(config: Config) -> str:
    """Return the network whose accuracy is the run's: f, or g where the method has no f."""
    return "f" if config.has_f else "g0"


def chosen_figure(config: Config, splits: Mapping[str, Any]) -> float:
    """Return the accuracy that chooses the best checkpoint."""
    split = "selection" if config.data.selection != "none" else config.evaluate.monitor
    return float(splits[split]["networks"][judged_network(config)]["accuracy"])


def assemble(
    config: Config,
    classes: Sequence[str],
    checkpoints: Mapping[str, Any],
    steps: int,
    lost: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        config: of the run.
        classes: names, by label.
        checkpoints: figures of ``last`` and ``best``.
        steps: optimizer steps taken.
        lost: a checkpoint that has no figures because it is damaged, and what is wrong with it.
    """
    return {
        "format": FORMAT,
        "run": config.name,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "classes": list(classes),
        "chosen_on": "oracle" if config.data.selection == "none" else "selection",
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
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']!r} is not read, only {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the results of a run ({error})") from None
    return dict(content)


def choice_name(content: Mapping[str, Any], choice: str) -> str:
    """Return what a checkpoint, ``last`` or ``best``, is called: chosen on test data, an oracle."""
    return "oracle" if choice == "best" and content["chosen_on"] == "oracle" else choice


def table(checkpoints: Mapping[str, Mapping[str, Any]], chance: float) -> str:
    """Return the accuracies as text: a row for each checkpoint and network, a column a split."""
    any_checkpoint = next(iter(checkpoints.values()))["splits"]
    splits = list(any_checkpoint)
    networks = list(next(iter(any_checkpoint.values()))["networks"])
    # Those whose images are in texture clusters.
    clustered = [
        s for s in splits if any(c["unbiased"] is not None for c in _scores(any_checkpoint[s]))
    ]
    titles = [*splits, *(f"{s}, unbiased" for s in clustered)]
    head = f"{'checkpoint':12} {'step':>7} {'network':8}" + "".join(f"{t:>16}" for t in titles)
    lines = [head, "-" * len(head)]
    missing = [name for name in ("f", "g0") if name not in networks]
    for choice, found in checkpoints.items():
        for name in missing:  # the method has none
            lines.append(f"{choice:12} {'–':>7} {name:8}" + f"{'–':>16}" * len(titles))
        for network in networks:
            cells = [found["splits"][s]["networks"][network] for s in splits]
            text = "".join(f"{c['accuracy']:>9.3f} ±{c['standard_error']:.3f}" for c in cells)
            for split in clustered:
                value = found["splits"][split]["networks"][network]["unbiased"]
                text += f"{'–' if value is None else f'{value:.3f}':>16}"
            lines.append(f"{choice:12} {found['step']:>7} {network:8}{text}")
    samples = ", ".join(f"{s} {any_checkpoint[s]['samples']:,}" for s in splits)
    lines.append(f"n: {samples}; chance {chance:.3f}; ± is the binomial standard error")
    if clustered:
        lines.append("unbiased: mean over cells of class and texture cluster")
    return "\n".join(lines)


def _scores(split: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(split["networks"].values())


def closing_text(content: dict[str, Any], folder: Path) -> str:
    """Return what a run says at its end."""
    note = {
        "selection": "best: chosen on selection data",
        "oracle": "oracle: chosen on the test data themselves; report last",
    }
    named = {choice_name(content, choice): c for choice, c in content["checkpoints"].items()}
    return "\n".join(
        [
            f"finished after {content['steps']} steps; test accuracies:",
            table(named, 1 / len(content["classes"])),
            note[content["chosen_on"]],
            f"tensorboard --logdir {folder / 'tensorboard'}",
        ]
    )
