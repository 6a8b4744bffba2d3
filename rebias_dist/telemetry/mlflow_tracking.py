"""MLflow: the records of a run in an MLflow store, a local SQLite file or a server."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.system.files import write_synced
from rebias_dist.telemetry.tracker import Plain, Tracker

ID_NAME = "mlflow.id"
"""File in the run's folder with its id at MLflow, so that a resumed run continues there."""
DATABASE_NAME = "mlflow.db"
"""The store beside the runs, which is used unless MLFLOW_TRACKING_URI names another."""

_DEFAULT_EXPERIMENT = "rebias-dist"
# MLflow's own limits for one request.
_PARAMETERS = 100
_METRICS = 1000
_SECONDS = 1.0  # a request takes some 10 ms, so the metrics of quick steps are sent together
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}


def store_of(runs_dir: Path) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or the file beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir / DATABASE_NAME}"


class MLflow(Tracker):
    """Sends a run's records to MLflow.

    The variables MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on have their usual meaning.

    Args:
        folder: of the run, absolute.
        project: name of the experiment; None: that of MLFLOW_EXPERIMENT_NAME, or "rebias-dist".
        config: by dotted keys. MLflow never changes a parameter, so a resumed run adds only new
            ones.
    """

    def __init__(self, folder: Path, project: str | None, config: Mapping[str, Plain]) -> None:
        from mlflow import MlflowClient, entities  # takes seconds, and few runs need it

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._entities: Any = entities
        self._client = MlflowClient(store_of(folder.parent))
        id_file = folder / ID_NAME
        if not id_file.exists():
            experiment = self._experiment(project, folder.parent)
            made = self._client.create_run(experiment, run_name=folder.name)
            write_synced(id_file, made.info.run_id.encode())
        self._id = id_file.read_text().strip()
        self._client.update_run(self._id, status="RUNNING")
        known = self._client.get_run(self._id).data.params
        new = [entities.Param(key, str(config[key])) for key in config if key not in known]
        for begin in range(0, len(new), _PARAMETERS):
            self._client.log_batch(self._id, params=new[begin : begin + _PARAMETERS])
        self._metrics: list[Any] = []
        self._sent = time.monotonic()

    def _experiment(self, project: str | None, runs_dir: Path) -> str:
        from mlflow.exceptions import MlflowException

        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT
        # Without this, MLflow keeps pictures in the working directory of each run.
        local = not os.environ.get("MLFLOW_TRACKING_URI")
        place = (runs_dir / "mlartifacts").as_uri() if local else None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, place))
            except MlflowException:
                # Another run may have made it at the same moment.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def scalars(self, step: int, values: Mapping[str, float], *, epoch: int, when: float) -> None:
        """Record scalars."""
        self._add(step, {"epoch": epoch, **values}, when)
        if time.monotonic() - self._sent > _SECONDS or len(self._metrics) > _METRICS:
            self.flush()

    def text(self, tag: str, step: int, text: str) -> None:
        """Record a text as the file ``<tag>.md``."""
        self._client.log_text(self._id, text, f"{tag}.md")

    def image(self, tag: str, step: int, image: NDArray[np.uint8]) -> None:
        """Record an image as the file ``<tag>.png``."""
        self._client.log_image(self._id, image.transpose(1, 2, 0), f"{tag}.png")

    def final(self, step: int, config: Mapping[str, Plain], figures: Mapping[str, float]) -> None:
        """Record the final figures as the metrics ``final/<name>``."""
        named = {f"final/{name}": value for name, value in figures.items()}
        self._add(step, named, time.time())

    def _add(self, step: int, values: Mapping[str, float], when: float) -> None:
        for tag, value in values.items():
            # MLflow refuses other characters.
            key = re.sub(r"[^\w./ -]", "_", tag)
            self._metrics.append(self._entities.Metric(key, value, round(1000 * when), step))

    def flush(self) -> None:
        """Send what waits in memory."""
        while self._metrics:
            self._client.log_batch(self._id, metrics=self._metrics[:_METRICS])
            del self._metrics[:_METRICS]
        self._sent = time.monotonic()

    def close(self, status: str | None) -> None:
        """Send what is pending, and end the run there."""
        self.flush()
        self._client.set_terminated(self._id, _STATUS.get(status or "", "FAILED"))
