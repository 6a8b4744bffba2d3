"""A run stopped anywhere arrives at the same bits as the run that was not stopped."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rebias_dist.config.files import validate
from rebias_dist.errors import InterruptedRun, RebiasError
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.step.minimax import Minimax
from rebias_dist.train import main
from tests.distributed.ranks import run_ranks
from tests.faults.failpoints import ACTIONS, TRAINING, WRITING, Killed, failpoint

STEPS = 24
# Accumulation on one and on two ranks: 48 / 12 = 4 micro-batches a step.
SETTINGS = {
    "max_steps": STEPS,
    "optimizer": {"name": "adam"},
    "radius": {"f": "median", "g": "median"},
    "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25, "dropout": 0.1},
    "checkpoint": {"every_steps": 1},
    "evaluate": {"every_epochs": 1},
    "data": {"image_size": 8, "rho": 0.8},
}
Log = dict[int, list[int]]
"""The sample ids of a rank's micro-batches, by step."""


def settings(small_run: dict) -> dict:
    """The settings of the reference run."""
    return {**small_run, **SETTINGS, "data": {**small_run["data"], **SETTINGS["data"]}}


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of each part of a run's last checkpoint that decides the future."""
    state = load_choice(run / "checkpoints", "last")
    parts = {name: state["players"][name] for name in ("f", "g0")}
    parts["counters"] = {
        key: state[key] for key in ("step", "epoch", "radii", "radii_epoch", "best", "randomness")
    }
    return {name: _digest(value) for name, value in parts.items()}


def _digest(value) -> str:
    found = hashlib.sha256()

    def add(entry) -> None:
        if isinstance(entry, torch.Tensor):
            found.update(entry.contiguous().numpy().tobytes())
        elif isinstance(entry, dict):
            for key, inner in entry.items():
                found.update(str(key).encode())
                add(inner)
        elif isinstance(entry, (list, tuple)):
            for inner in entry:
                add(inner)
        else:
            found.update(repr(entry).encode())

    add(value)
    return found.hexdigest()


def train(values: dict, log: Log) -> None:
    """Run, or resume, in this process; note the samples, and compare those of repeated steps."""
    take = Minimax.step

    def noting(self, batches, number, radii):
        ids = np.concatenate([batch.samples for batch in batches]).tolist()
        assert log.setdefault(number, ids) == ids, f"other samples when step {number} was repeated"
        return take(self, batches, number, radii)

    Minimax.step = noting
    try:
        main(validate(values))
    finally:
        Minimax.step = take


def losses(run: Path) -> dict[int, tuple[float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "f/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    return {line["step"]: (line["f/loss"], line["g0/loss"]) for line in steps}


def _killed() -> None:
    raise Killed


def _refused() -> None:
    # In a thread of rank 0, of which the other ranks hear in the ordinary way.
    raise RebiasError("killed")


def stop_everywhere(values: dict, points: list[tuple[str, int]], leader: bool) -> None:
    """Compare each stopped and resumed run with one that was not; on every rank alike."""
    runs = Path(values["runs_dir"])
    log: Log = {}
    train({**values, "name": "whole"}, log)
    assert sorted(log) == list(range(STEPS))
    expected = (fingerprint(runs / "whole"), losses(runs / "whole")) if leader else None
    alone = not torch.distributed.is_initialized()
    for number, (point, step) in enumerate(points):
        case = {**values, "name": f"stopped-{number}"}
        found: Log = {}
        action = _killed if alone or point in TRAINING else _refused
        with (
            failpoint(point, step, action),
            pytest.raises((Killed, RebiasError), match=r"^$|killed"),
        ):
            train(case, found)
        train(case, found)
        assert found == log, (point, step)
        if leader:
            run = runs / case["name"]
            assert (fingerprint(run), losses(run)) == expected, (point, step)


def _on_ranks(values: dict, points: list[tuple[str, int]]) -> bool:
    stop_everywhere(values, points, torch.distributed.get_rank() == 0)
    return True


ALL = [(point, step) for point in (*TRAINING, *WRITING) for step in range(1, STEPS + 1)]


def test_the_failpoints_lie_where_they_should(small_run, tmp_path):
    """What is on the disk tells before and after apart."""
    found = {}
    for point in WRITING:
        values = {**settings(small_run), "name": point.replace(" ", "-")}
        with pytest.raises(Killed), failpoint(point, 3, _killed):
            main(validate(values))
        folder = tmp_path / "runs" / values["name"] / "checkpoints"
        found[point] = sorted(path.name for path in folder.iterdir())
    whole = [f"step-00000000{k}" for k in (1, 2, 3)]
    assert found == {
        "while writing": [".step-000000003", *whole[:2]],
        "before rename": [".step-000000003", *whole[:2]],
        "after rename": whole,
    }


@pytest.mark.slow
def test_one_rank_stopped_here_and_there(small_run):
    # Steps 8 and 16 end epochs, with an evaluation and a best checkpoint.
    steps = {1: 0, 8: 1, 9: 2, 16: 3, 13: 4, 24: 5}
    points = [(p, s) for i, p in enumerate((*TRAINING, *WRITING)) for s in steps if steps[s] == i]
    stop_everywhere(settings(small_run), points, leader=True)


@pytest.mark.slow
def test_two_ranks_stopped_here_and_there(small_run):
    points = [("between g and f", 5), ("before rename", 8), ("after the optimizer", 17)]
    assert run_ranks(2, _on_ranks, settings(small_run), points, timeout=1000) == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_rank_stopped_at_every_step_and_point(small_run):
    stop_everywhere(settings(small_run), ALL, leader=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_ranks_stopped_at_every_step_and_point(small_run):
    assert run_ranks(2, _on_ranks, settings(small_run), ALL, timeout=3500) == [True, True]


def _some_steps(values: dict, stop_before: int, last: bool) -> Log:
    """Go on with a run until a signal comes before a step; return this rank's samples."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    log: Log = {}

    def signalled() -> None:
        if rank == world - 1:
            ACTIONS["terminate"]()

    with failpoint("start of the step", stop_before, signalled):
        if last:
            train(values, log)
        else:
            with pytest.raises(InterruptedRun, match=f"saved at step {stop_before}"):
                train(values, log)
    return log


def moved(values: dict, tmp_path: Path) -> Log:
    """Run on two ranks, then one, then three: the samples and losses of a whole run, by step."""
    whole: Log = {}
    train({**values, "name": "whole"}, whole)
    seen: Log = {}
    for world, stop, last in ((2, 5, False), (1, 14, False), (3, STEPS + 1, True)):
        for log in run_ranks(world, _some_steps, values, stop, last, timeout=1000):
            for step, ids in log.items():
                seen.setdefault(step, []).extend(ids)
    assert {k: sorted(ids) for k, ids in seen.items()} == {k: sorted(v) for k, v in whole.items()}
    a, b = losses(tmp_path / "runs/moving"), losses(tmp_path / "runs/whole")
    largest = max(abs(x - y) / abs(y) for k in b for x, y in zip(a[k], b[k], strict=True))
    print(f"largest relative difference of a loss: {largest:.2e}")
    assert largest <= 1e-10
    return seen


def test_two_ranks_then_one_then_three(small_run, tmp_path):
    values = {
        **settings(small_run),
        "micro_batch": 4,
        "name": "moving",
        "checkpoint": {},
        "f": small_run["f"] | {"dropout": 0.1},
    }
    seen = moved(values, tmp_path)
    for epoch in range(3):
        ids = [i for step in range(8 * epoch, 8 * epoch + 8) for i in seen[step]]
        assert len(ids) == len(set(ids)) == 8 * 48
