"""The optional trackers of a run: W&B and MLflow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rebias_dist.config.files import flat
from rebias_dist.config.schema import Config
from rebias_dist.errors import ConfigError
from rebias_dist.telemetry import weights_and_biases
from rebias_dist.telemetry.mlflow_tracking import MLflow, store_of
from rebias_dist.telemetry.tracker import Apart, Plain
from rebias_dist.telemetry.weights_and_biases import WeightsAndBiases


def check_trackers(config: Config) -> None:
    """Check that the trackers of ``log.to`` are installed, and that this machine may use them.

    Raises:
        ConfigError: a package or a login is missing.
    """
    for name in config.log.to:
        # A folder of this name, such as W&B makes one, is found too, but has no origin.
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"log.to: {name} is not installed; use \"pip install 'rebias-dist[{name}]'\""
            )
    if "wandb" in config.log.to:
        weights_and_biases.check_login()


def open_trackers(config: Config, folder: Path) -> list[Apart]:
    """Return the trackers of ``log.to``, each in a thread of its own; for rank 0.

    Args:
        config: of the run.
        folder: of the run.
    """
    place, project = folder.resolve(), config.log.project
    settings = settings_of(config)
    found = []
    if "wandb" in config.log.to:
        cure = (
            "check the connection, or set WANDB_MODE=offline; "
            f"'wandb sync {folder}/wandb/*run-*' sends what is missing"
        )
        found.append(Apart("wandb", cure, lambda: WeightsAndBiases(place, project, settings)))
    if "mlflow" in config.log.to:
        cure = f"check its store, {store_of(place.parent)}"
        found.append(Apart("mlflow", cure, lambda: MLflow(place, project, settings)))
    return found


def settings_of(config: Config) -> dict[str, Plain]:
    """Return the settings that decide the weights, by dotted keys."""
    return {
        key: value if isinstance(value, (str, int, float, bool)) else str(value)
        for key, value in flat(config.identity()).items()
    }
