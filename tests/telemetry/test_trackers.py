"""W&B and MLflow, by their real packages, get what a run records; their faults do not stop it."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from rebias_dist.config.files import validate
from rebias_dist.telemetry.mlflow_tracking import MLflow
from rebias_dist.telemetry.tracker import Apart, Tracker
from rebias_dist.telemetry.writers import Telemetry
from tests.telemetry.wandb_file import items_of, records_of


def train(cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run the training command as a user who never heard of W&B or MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    environment = {**kept, "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "rebias_dist.train", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1000
    )


@pytest.fixture(scope="module")
def folder(few_digits, tmp_path_factory) -> Path:
    """A folder with ``small.yaml``, a run of seconds."""
    folder = tmp_path_factory.mktemp("tracked")
    values = {
        "global_batch": 48,
        "micro_batch": 24,
        "epochs": 1,
        "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
        "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
        "data": {"source": str(few_digits), "image_size": 8, "rho": 0.8},
        "checkpoint": {"every_steps": 1},
        "log": {"to": ["wandb", "mlflow"], "project": "digits"},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """A run in two parts: four steps, and the rest."""
    (folder / "runs").mkdir()
    # On a busy machine it may take longer to make the database than a run waits at its end.
    MlflowClient(f"sqlite:///{folder / 'runs/mlflow.db'}").search_experiments()
    words = ("--config", "small.yaml", "--name", "a")
    for part in (("--max-steps", "4", "--evaluate.final", "none"), ()):
        # An empty variable is as good as none.
        variables = {"MLFLOW_TRACKING_URI": ""} if part else {}
        done = train(folder, *words, *part, WANDB_MODE="offline", **variables)
        assert done.returncode == 0, done.stderr
        # The trackers say nothing of their own.
        own = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-", line)]
        assert [line for line in own if re.search("wandb|mlflow|alembic", line)] == [], own
        assert not re.search("WARNING (wandb|mlflow)", done.stderr)
    return folder / "runs/a"


@pytest.fixture(scope="module")
def recorded(run) -> dict[tuple[int, str], float]:
    """The scalars in metrics.jsonl by step and tag."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    place = {"step", "time"}
    found = {(line["step"], tag): line[tag] for line in lines for tag in line.keys() - place}
    assert len({step for step, _ in found}) > 4
    return found


def final_figures(run: Path) -> dict[str, float]:
    checkpoints = json.loads((run / "results.json").read_text())["checkpoints"]
    return {
        f"final/{choice}_{split}_{network}_accuracy": figures["accuracy"]
        for choice, found in checkpoints.items()
        for split, part in found["splits"].items()
        for network, figures in part["networks"].items()
    }


def test_wandb_gets_scalars_config_figures_and_pictures_under_one_id(run, recorded):
    parts = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2
    scalars, summary, config, ids = {}, {}, {}, []
    for part in parts:
        for record in records_of(part):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.append((record.run.run_id, record.run.display_name, record.run.project))
                config |= items_of(record.run.config.update)
            elif kind == "history":
                row = items_of(record.history.item)
                scalars |= {(row["step"], tag): value for tag, value in row.items()}
            elif kind == "summary":
                summary |= items_of(record.summary.update)
            elif kind == "exit":
                assert record.exit.exit_code == 0
    identity = (run / "wandb.id").read_text()
    assert ids == [(identity, "a", "digits")] * 2
    assert {key: scalars[key] for key in recorded} == recorded
    assert (config["method.name"], config["data.rho"]) == ("rebias", 0.8)
    figures = final_figures(run)
    assert {name: summary[name] for name in figures} == figures
    pictures = [path.name for path in run.glob("wandb/offline-run-*/files/media/images/**/*.png")]
    assert any("confusion" in name for name in pictures)


def test_mlflow_gets_the_same_in_a_database_beside_the_runs(run, recorded):
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == (run / "mlflow.id").read_text()
    assert (found.info.run_name, found.info.status) == ("a", "FINISHED")
    scalars = {
        (metric.step, key): metric.value
        for key in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, key)
    }
    assert {key: scalars[key] for key in recorded} == recorded
    figures = final_figures(run)
    assert {name: found.data.metrics[name] for name in figures} == figures
    assert found.data.params["method.name"] == "rebias"
    assert found.data.params["data.rho"] == "0.8"
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"config.md", "environment.md"} <= files
    pictures = list((run.parent / "mlartifacts").rglob("*confusion.png"))
    assert pictures


def test_a_run_without_tensorboard_has_no_folder_for_it(run):
    assert not (run / "tensorboard").exists()
    assert "tensorboard --logdir" not in (run / "logs/rank0.log").read_text()


def test_without_a_login_no_run_begins(folder):
    done = train(folder, "--config", "small.yaml", "--name", "b", "--log.to", "[wandb]")
    assert done.returncode == 2
    assert done.stderr == (
        "rebias-train: error: log.to: wandb: not logged in; run 'wandb login', or set "
        "WANDB_MODE=offline\n"
    )
    assert not (folder / "runs/b").exists()


WITHOUT = """
import sys
from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError
from rebias_dist.telemetry.trackers import check_trackers
sys.path[:] = [""]  # the folder of the run, and no package
try:
    check_trackers(validate({"log": {"to": sys.argv[1:]}}))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_with_its_cure(name, tmp_path):
    (tmp_path / name).mkdir()  # as W&B makes one in the folder of a run
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == (
        f"log.to: {name} is not installed; use \"pip install 'rebias-dist[{name}]'\"\n"
    ), done.stderr


def warnings_of(
    folder: Path, *apart: Apart, steps: int, then: Callable[[], None] = lambda: None
) -> list[str]:
    """Record some steps of a run with trackers, and return the warnings in its log.

    ``then`` is called before the run ends.
    """
    telemetry = Telemetry(
        folder, rank=0, total_steps=9, global_batch=1, identity={}, tensorboard=False, apart=apart
    )
    for step in range(1, steps + 1):
        telemetry.scalars(step, {"f/loss": 1.0}, epoch=0)
    then()
    telemetry.close()
    assert logging.getLogger("rebias_dist").handlers == []
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == steps
    log = (folder / "logs/rank0.log").read_text()
    return [line.partition(" WARNING ")[2] for line in log.splitlines() if " WARNING " in line]


def test_a_tracker_that_fails_costs_one_line(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        failing = Apart("mlflow", "look at it", lambda: MLflow(tmp_path, None, {}))
        (told,) = warnings_of(tmp_path, failing, steps=2)
    assert re.fullmatch("mlflow: .*refused.*; the run goes on without it; look at it", told)


def test_a_tracker_that_hangs_is_waited_for_a_while_and_told(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        hanging = Apart("mlflow", "look at it", lambda: MLflow(tmp_path, None, {}), patience=0.5)
        told = warnings_of(tmp_path, hanging, steps=2)
    assert told == [
        "mlflow: did not end within 0.5 seconds; the run goes on without it; look at it"
    ]


def test_a_slow_tracker_loses_records_and_the_end_is_not_among_them(tmp_path):
    got: list[int] = []
    go_on = threading.Event()

    class Slow(Tracker):
        def scalars(self, step, values, *, epoch, when):
            got.append(step)

        def close(self, status):
            got.append(-1)

    def opened() -> Tracker:
        assert go_on.wait(1000)
        return Slow()

    slow = Apart("slow", "wait", opened, waiting=3)
    told = warnings_of(tmp_path, slow, steps=3, then=go_on.set)
    assert (got, told) == ([1, 2, 3, -1], [])
    got.clear()
    go_on.clear()
    slow = Apart("slow", "wait", opened, waiting=3)
    told = warnings_of(tmp_path / "more", slow, steps=8, then=go_on.set)
    assert got == [1, 2, 3, -1]
    assert told[0].startswith("slow: takes records more slowly than the run makes them")
    assert told[1:] == ["slow: 5 records were left out in all"]


def test_an_old_configuration_writes_for_tensorboard():
    assert validate({"log": {"every_steps": 2}}).log.to == ["tensorboard"]
