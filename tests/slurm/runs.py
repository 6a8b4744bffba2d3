"""Small runs through 'rebias-launch slurm', and the files that they leave."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from tests import ROOT
from tests.slurm.cluster import Cluster, wait_until

STEPS = 8


def configuration(small_run: dict[str, Any], seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return a run of eight steps; f sleeps for ``seconds`` in each forward pass."""
    f = {"kernel_size": 3, "width": 0.25, "seconds": seconds}
    return {
        **{key: value for key, value in small_run.items() if key != "runs_dir"},
        "f": {"name": "tests.slurm.slow_network:build", "options": f},
        "max_steps": STEPS,
        "device": "cpu",
        **more,
    }


def launch(
    cluster: Cluster, folder: Path, name: str, config: dict[str, Any], *words: str
) -> tuple[str, Path]:
    """Submit a run on CPUs; return its job and its folder."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    options = [f"--name={name}", f"--runs-dir={folder / 'runs'}", "--cpu", "--time=30"]
    said = cluster.run(
        *(sys.executable, "-m", "launch", "slurm", str(file), *options, *words), cwd=ROOT
    )
    job = said.partition("submitted job ")[2].partition(",")[0]
    assert job.isdigit(), said
    return job, folder / "runs" / name


def output(run: Path) -> str:
    """Return what the jobs of a run printed."""
    return "".join(path.read_text() for path in sorted(run.glob("logs/slurm-*.out")))


def state(run: Path) -> dict[str, Any]:
    """Return the state file of a run, or an empty one."""
    try:
        return dict(json.loads((run / "state.json").read_text()))
    except (OSError, ValueError):
        return {}


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has made ``step`` steps."""
    wait_until(lambda: state(run).get("step", 0) >= step, f"{run.name} is at step {step}", 280)


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Return the losses of each step; fail if a step was recorded twice."""
    found: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        values = {key: value for key, value in entry.items() if key.endswith("/loss")}
        if values:
            assert entry["step"] not in found
            found[entry["step"]] = values
    assert list(found) == list(range(1, len(found) + 1))
    return found


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's checkpoint by their path in it."""
    path = run / f"checkpoints/step-{step:09d}/state.pt"
    found: dict[str, torch.Tensor] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, torch.Tensor):
            found[place] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}/{key}")
        elif isinstance(value, (list, tuple)):
            for number, inner in enumerate(value):
                walk(inner, f"{place}/{number}")

    walk(torch.load(path, map_location="cpu", weights_only=True), "")
    assert len(found) > 20
    return found


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Assert that two runs have the same final weights, bit by bit, and the same losses."""
    assert losses(run) == losses(undisturbed)
    mine, other = weights(run), weights(undisturbed)
    assert mine.keys() == other.keys()
    for place, tensor in mine.items():
        assert torch.equal(tensor, other[place]), place


def alone(config: dict[str, Any], folder: Path, name: str) -> Path:
    """Train the same run in a single process without SLURM; return its folder."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "rebias_dist.train", f"--config={file}", f"--name={name}"]
    done = subprocess.run(
        [*command, f"--runs-dir={folder / 'runs'}"],
        capture_output=True,
        text=True,
        timeout=1000,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / name
