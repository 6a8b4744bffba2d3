"""A stop while samples are read between two steps: the run saves, and resumes to the same bits."""

import json
import sys
from pathlib import Path

import pytest

from rebias_dist.runs.checkpoint import load_choice
from tests import ROOT
from tests.faults.processes import Started, torchrun_command, write_config
from tests.faults.test_resume_exactly import _digest, losses, settings

pytestmark = pytest.mark.timeout(3600)

# Sends SIGTERM to a rank while it reads its third micro-batch, or a later one, in a call of what
# the test names. A worker is slow from then on, so that its rank has to wait for it.
_SITE = """\
import json, os, signal, sys, time
plan = json.loads(os.environ["STOP"])
is_rank = os.environ.get("RANK", "0") == plan["rank"]
if is_rank and not os.path.exists(plan["once"]) and "torch.distributed.run" not in sys.orig_argv:
    from rebias_dist.data.loader import _Fetcher
    from rebias_dist.evaluation import method_engine, splits
    module, name = {
        "evaluation": (splits, "predict"),
        "turn": (method_engine, "predict"),
        "radii": (method_engine, "measure_radii"),
    }[plan["point"]]
    function, fetch, process = getattr(module, name), _Fetcher._fetch, os.getpid()
    calls, inside = [], []

    def called(*arguments, **options):
        calls.append(name)
        if len(calls) == plan["call"]:
            inside.append(name)
        try:
            return function(*arguments, **options)
        finally:
            inside.clear()

    def stopping(self, request, place_for):
        if inside and request.index >= 2 and not os.path.exists(plan["once"]):
            open(plan["once"], "w").close()
            os.kill(process, signal.SIGTERM)
            if os.getpid() != process:
                time.sleep(600)
        return fetch(self, request, place_for)

    setattr(module, name, called)
    _Fetcher._fetch = stopping
"""

# A method that changes its state and its network in its turn, and predicts before and after that.
_METHOD = """\
import torch
from rebias_dist.methods.jtt import JTT
from rebias_dist.methods.options import JTTOptions
from rebias_dist.methods.registry import Facts


class Counting(JTT):
    facts = Facts(has_g=False)
    Options = JTTOptions

    def prepare(self, training, networks):
        super().prepare(training, networks)
        self.counts = torch.zeros(2, dtype=torch.int64)

    def state(self):
        return {**super().state(), "counts": self.counts}

    def before_epoch(self, epoch, engine):
        self.counts[0] += 1
        super().before_epoch(epoch, engine)
        self.counts[0] += 100 * int(engine.predict("f").sum())

    def after_step(self, step, engine):
        if step == 2:
            self.counts[1] += 1 + int(engine.predict("f").sum())
"""


class Runs:
    """Runs of one configuration, in processes of their own."""

    def __init__(self, folder: Path, values: dict, ranks: int) -> None:
        self.folder, self.ranks, self.stops = folder, ranks, 0
        values["evaluate"] = {"every_epochs": 1, "batch": 8, "final": "none"}
        self.config = write_config(folder / "config.yaml", {**values, "checkpoint": {}})
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(_SITE)
        (folder / "site/counting.py").write_text(_METHOD)

    def run(self, name: str, point: str = "", call: int = 0, workers: int = 0) -> int | None:
        """Start or resume a run; return the step at which it was stopped and saved, if it was."""
        self.stops += bool(point)
        once = self.folder / f"stopped-{self.stops}"
        if not point:
            once.touch()
        plan = {"rank": str(self.ranks - 1), "point": point, "call": call, "once": str(once)}
        arguments = ("--config", self.config, "--name", name, "--data.workers", str(workers))
        command = [sys.executable, "-m", "rebias_dist.train", *arguments]
        if self.ranks > 1:
            command = torchrun_command(self.ranks, *arguments)
        path = f"{self.folder / 'site'}:{ROOT}"
        ended = Started(command, self.folder, PYTHONPATH=path, STOP=json.dumps(plan)).end()
        assert ended.left == []
        if not point:
            assert ended.code == 0, ended.out
            return None
        state = json.loads((self.folder / "runs" / name / "state.json").read_text())
        assert ended.code == 75 or self.ranks > 1, ended.out
        assert (once.exists(), state["status"]) == (True, "interrupted"), ended.out
        assert f"saved at step {state['step']}; to continue" in ended.out
        saved = load_choice(self.folder / "runs" / name / "checkpoints", "last")
        assert saved["step"] == state["step"]
        return int(saved["step"])

    def state(self, name: str) -> dict[str, str]:
        """The digest of each part of a run's last checkpoint, but for the run's name."""
        state = load_choice(self.folder / "runs" / name / "checkpoints", "last")
        return {key: _digest(value) for key, value in state.items() if key != "config"}


def test_an_evaluation_and_the_radii(small_run, tmp_path):
    runs = Runs(tmp_path, settings(small_run), ranks=1)
    runs.run("whole")
    # An epoch has 8 steps. It is evaluated, and then the radii of the next one are measured.
    assert runs.run("a", "evaluation", call=1, workers=1) == 8
    assert runs.run("a", "radii", call=1, workers=0) == 8
    runs.run("a")
    assert runs.state("a") == runs.state("whole")
    assert losses(tmp_path / "runs/a") == losses(tmp_path / "runs/whole")


@pytest.mark.slow
def test_the_turn_of_a_method_is_taken_whole_or_not_at_all(small_run, tmp_path):
    values = {**settings(small_run), "method": {"name": "counting:Counting"}}
    runs = Runs(tmp_path, values, ranks=1)
    runs.run("whole")
    assert runs.run("a", "turn", call=1, workers=1) == 8
    assert runs.run("a", "turn", call=2, workers=0) == 8  # the state and f have changed by then
    assert runs.run("a", "turn", call=3, workers=0) == 11  # a part of the step before
    runs.run("a")
    assert runs.state("a") == runs.state("whole")


@pytest.mark.slow
def test_one_of_two_ranks(small_run, tmp_path):
    runs = Runs(tmp_path, settings(small_run), ranks=2)
    runs.run("whole")
    assert runs.run("a", "evaluation", call=2) == 16
    runs.run("a")
    assert runs.state("a") == runs.state("whole")
