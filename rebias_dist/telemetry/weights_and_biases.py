"""Weights & Biases: the records of a run in a project there, or on disk in its offline mode."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.system.files import write_synced
from rebias_dist.errors import ConfigError
from rebias_dist.telemetry.tracker import END_SECONDS, Plain, Tracker

ID_NAME = "wandb.id"
"""File in the run's folder with its id at W&B, so that a resumed run continues there."""

_DEFAULT_PROJECT = "rebias-dist"


def check_login() -> None:
    """Check that this machine is logged in to W&B, or that W&B is in its offline mode.

    Raises:
        ConfigError: it is not.
    """
    import wandb  # takes a second, and few runs need it

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    try:
        logged_in = wandb.login(prompt=False)
    except (wandb.errors.Error, ValueError) as error:
        raise ConfigError(f"log.to: wandb: {str(error).partition(chr(10))[0]}") from None
    if not logged_in:
        raise ConfigError(
            "log.to: wandb: not logged in; run 'wandb login', or set WANDB_MODE=offline"
        )


class WeightsAndBiases(Tracker):
    """Sends a run's records to W&B.

    The variables WANDB_MODE, WANDB_ENTITY, WANDB_PROJECT and so on have their usual meaning.

    Args:
        folder: of the run; W&B keeps its files in ``wandb/`` there.
        project: name of the project; None: that of WANDB_PROJECT, or "rebias-dist".
        config: by dotted keys.
    """

    def __init__(self, folder: Path, project: str | None, config: Mapping[str, Plain]) -> None:
        import wandb

        self._wandb = wandb
        id_file = folder / ID_NAME
        if not id_file.exists():
            write_synced(id_file, secrets.token_hex(4).encode())
        self._run: Any = wandb.init(
            project=project or wandb.setup().settings.project or _DEFAULT_PROJECT,
            id=id_file.read_text().strip(),
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",  # the run's own log stays as it is
                silent=True,
                # The exit of the process waits for W&B too, so W&B has to keep the limit.
                finish_timeout=END_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        # W&B's own steps must grow. A resumed run takes some steps again, so the axis is ours.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int, when: float) -> None:
        """Record scalars."""
        self._run.log({"step": step, "epoch": epoch, **values})

    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text in the run's summary."""
        self._run.summary[tag] = text

    def image(self, tag: str, step: int, image: NDArray[np.uint8]) -> None:
        """Record an image."""
        self._run.log({"step": step, tag: self._wandb.Image(image.transpose(1, 2, 0))})

    def final(self, step: int, config: Mapping[str, Plain], figures: Mapping[str, float]) -> None:
        """Record the final figures in the run's summary, as ``final/<name>``."""
        self._run.summary.update({f"final/{name}": value for name, value in figures.items()})

    def close(self, status: str | None) -> None:
        """Send what is pending, and end the run there."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
