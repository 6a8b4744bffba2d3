"""Real processes that are killed, stopped, signalled and damaged."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from rebias_dist.assemble import data_root
from rebias_dist.config.files import validate
from tests import ROOT
from tests.faults.failpoints import TRAINING, WRITING, plant
from tests.faults.processes import (
    DEADLINE,
    Ended,
    Started,
    listening,
    outliving,
    torchrun,
    torchrun_command,
    write_config,
)
from tests.faults.test_resume_exactly import fingerprint, losses, settings

pytestmark = pytest.mark.timeout(3600)
_YEAR = 365 * 24 * 3600.0


@pytest.fixture
def config(small_run, tmp_path):
    """The reference run of 24 steps, as a file."""
    return write_config(tmp_path / "small.yaml", settings(small_run))


def alone(*arguments: str, cwd: Path, **environment: str) -> Ended:
    """Run the training in a single process, without torchrun."""
    return Started(
        [sys.executable, "-m", "rebias_dist.train", *arguments], cwd, **environment
    ).end()


# ---------------------------------------------------------------------------- one rank fails


@pytest.mark.parametrize(
    ("action", "named"),
    [
        ("raise", "rank 1, step 5: ZeroDivisionError: a mistake in somebody's code"),
        ("kill", "rank 1 (process"),
        pytest.param("stop", "rank 1 (process", marks=pytest.mark.slow),
        ("nan", "step 5: the gradient of"),
        pytest.param("exit", "rank 1 (process", marks=pytest.mark.slow),
        pytest.param("memory", "out of memory: a smaller micro_batch", marks=pytest.mark.slow),
    ],
)
def test_a_fault_of_one_rank_ends_all(config, tmp_path, action, named):
    planted = plant(tmp_path / "site", rank=1, point="start of the step", step=6, action=action)
    ended = torchrun(
        2,
        *("--config", config, "--name", "a", "--faults.step_minutes", "0.1"),
        cwd=tmp_path,
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT="10",
        **planted,
    )
    assert ended.code == 1, ended.out
    assert ended.left == []
    assert any(named in line for line in ended.errors), ended.out
    assert all("step 5" in line for line in ended.errors), ended.out
    traces = ended.out.count('rebias_dist/train.py", line')
    assert traces == (3 if action in ("raise", "memory") else 0), ended.out  # main, run, step
    state = json.loads((tmp_path / "runs/a/state.json").read_text())
    assert (state["status"], state["step"]) == ("failed", 5)
    if action == "nan":
        assert "from rank 1 (" in ended.errors[0]
        assert "exitcode  : 3" in ended.out


def _slow(point: str, step: int):
    return pytest.param(point, step, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("point", "step"),
    [
        (WRITING[0], 9),
        *(_slow(point, step) for point in (*TRAINING, *WRITING) for step in (8, 13)),
    ],
)
def test_killed_and_resumed_with_clocks_a_year_off(config, tmp_path, point, step):
    early = {"rank": 0, "point": point, "step": step, "action": "kill", "clock": -_YEAR}
    killed = torchrun(
        2, "--config", config, "--name", "a", cwd=tmp_path, **plant(tmp_path / "s", **early)
    )
    assert killed.code == 1, killed.out
    assert killed.left == []
    reference = torchrun(2, "--config", config, "--name", "whole", cwd=tmp_path)
    late = plant(tmp_path / "late", rank=None, clock=_YEAR)
    resumed = torchrun(2, "--config", config, "--name", "a", cwd=tmp_path, **late)
    assert (reference.code, resumed.code) == (0, 0), resumed.out
    assert "continuing a after step" in resumed.out
    runs = tmp_path / "runs"
    assert fingerprint(runs / "a") == fingerprint(runs / "whole")
    assert losses(runs / "a") == losses(runs / "whole")
    attempts = json.loads((runs / "a/attempts.json").read_text())["attempts"]
    assert [a["outcome"] for a in attempts][-1] == "finished"
    assert attempts[0]["outcome"] in ("running", "failed")


def test_the_workers_of_a_killed_rank_end_with_it(small_run, tmp_path):
    """They share its lock on the run. Stopped, they could not even notice."""
    values = {**small_run, "epochs": 1000, "evaluate": {"every_epochs": 1000}}
    values["data"] = {**small_run["data"], "workers": 2}
    config = write_config(tmp_path / "long.yaml", values)
    command = [sys.executable, "-m", "rebias_dist.train", "--config", config, "--name", "a"]
    run = Started(command, tmp_path)
    run.wait_for("images/s")
    stopped: list[int] = []
    while not stopped:  # each epoch has workers of its own
        for worker in outliving(run.mark).keys() - {run.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                stopped.append(worker)
    run.process.kill()
    ended = run.end()
    assert (ended.code, ended.left) == (-signal.SIGKILL, [])


# ---------------------------------------------------------------------------- signals


def test_signals_to_one_rank_and_to_torchrun(small_run, tmp_path):
    values = {**small_run, "epochs": 1000, "evaluate": {"every_epochs": 1000}}
    long = write_config(tmp_path / "long.yaml", values)
    command = torchrun_command(2, "--config", long, "--name", "a")
    for target, number in (("rank", signal.SIGTERM), ("torchrun", signal.SIGHUP)):
        run = Started(command, tmp_path)
        run.wait_for("images/s")
        before = json.loads((tmp_path / "runs/a/state.json").read_text())["step"]
        _only_torchrun_listens_to_the_outside(run)
        os.kill(run.ranks()[1] if target == "rank" else run.process.pid, number)
        ended = run.end()
        state = json.loads((tmp_path / "runs/a/state.json").read_text())
        assert state["status"] == "interrupted", ended.out
        assert state["step"] >= before
        assert f"saved at step {state['step']}" in ended.out
        assert (tmp_path / f"runs/a/checkpoints/step-{state['step']:09d}").is_dir()
        assert ended.left == []
        assert ended.code != 0


def _only_torchrun_listens_to_the_outside(run: Started) -> None:
    """torchrun's store does, whatever its arguments; no socket of ours."""
    ranks = run.ranks()
    assert len(ranks) == 2
    for rank in ranks:
        found = listening([rank])
        assert found, "a rank has its connections"
        assert all(address.startswith("127.") for address in found), found


def test_a_single_process_listens_nowhere(small_run, tmp_path):
    values = {**small_run, "epochs": 1000, "evaluate": {"every_epochs": 1000}}
    long = write_config(tmp_path / "long.yaml", values)
    command = [sys.executable, "-m", "rebias_dist.train", "--config", long, "--name", "a"]
    run = Started(command, tmp_path)
    run.wait_for("images/s")
    assert listening(outliving(run.mark)) == []
    run.process.send_signal(signal.SIGHUP)  # its terminal is closed
    ended = run.end()
    assert (ended.code, ended.left) == (75, []), ended.out
    assert json.loads((tmp_path / "runs/a/state.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_nohup_is_left_alone(small_run, tmp_path):
    values = {**small_run, "epochs": 1000, "evaluate": {"every_epochs": 1000}}
    long = write_config(tmp_path / "long.yaml", {**values, "log": {"to": [], "every_steps": 1}})
    command = ["nohup", sys.executable, "-m", "rebias_dist.train", "--config", long, "--name", "a"]
    run = Started(command, tmp_path)
    run.wait_for("images/s")
    run.process.send_signal(signal.SIGHUP)
    before = _step(tmp_path / "runs/a")
    while _step(tmp_path / "runs/a") < before + 20:
        assert run.process.poll() is None, run.said()
        time.sleep(0.05)
    run.process.send_signal(signal.SIGTERM)
    ended = run.end()
    assert (ended.code, ended.left) == (75, []), ended.out


@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored"])
def test_a_closed_terminal_saves_a_run_or_is_left_alone(small_run, tmp_path, ignored):
    """The terminal is gone while a step is taken, and so is where its progress is shown."""
    values = {**small_run, "epochs": 1000, "evaluate": {"every_epochs": 1000}}
    long = write_config(tmp_path / "long.yaml", {**values, "log": {"to": [], "every_steps": 1}})
    command = [sys.executable, "-m", "rebias_dist.train", "--config", long, "--name", "a"]
    planted = plant(tmp_path / "s", rank=0, point="start of the step", step=6, action="hangup")
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

    def on_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **planted},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=on_terminal,
    )
    os.close(theirs)
    try:
        while not (tmp_path / "s/has worked").exists():
            assert run.poll() is None
            if select.select([mine], [], [], 0.05)[0]:
                os.read(mine, 65536)
        os.close(mine)
        if ignored:
            while _step(tmp_path / "runs/a") < 25:
                assert run.poll() is None
                time.sleep(0.05)
            run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 75
    finally:
        run.kill()
    state = json.loads((tmp_path / "runs/a/state.json").read_text())
    assert state["status"] == "interrupted"
    assert (state["step"] == 6) != ignored
    assert (tmp_path / f"runs/a/checkpoints/step-{state['step']:09d}").is_dir()


def _step(run: Path) -> int:
    return json.loads((run / "state.json").read_text())["step"]


def test_a_stop_signal_ends_an_evaluation_with_one_line(small_run, tmp_path):
    config = write_config(tmp_path / "short.yaml", {**small_run, "max_steps": 1})
    assert alone("--config", config, "--name", "a", cwd=tmp_path).code == 0
    command = [sys.executable, "-m", "rebias_dist.commands.evaluate", *["runs/a"] * 2000]
    run = Started(command, tmp_path)
    while not _listens_to_hangups(run.process.pid):
        assert run.process.poll() is None, run.said()
        time.sleep(0.05)
    run.process.send_signal(signal.SIGHUP)
    ended = run.end()
    assert (ended.code, ended.left) == (1, []), ended.out
    assert ended.out.splitlines()[-1].startswith("rebias-evaluate: error: interrupted at once")


def _listens_to_hangups(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) & 1 << signal.SIGHUP - 1)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_of_one_rank_that_hang_end_all_ranks_with_one_line(small_run, tmp_path, ranks):
    run = _hanging_workers(small_run, tmp_path, ranks, minutes=0.2)
    ended = run.end()
    assert (ended.code, ended.left) == (1, []), ended.out
    (line,) = ended.errors
    assert re.search(r"no data for \d+ s", line)
    assert ("rank 1: " in line) == (ranks == 2)
    assert json.loads((tmp_path / "runs/a/state.json").read_text())["status"] == "failed"


def test_a_stop_while_workers_hang_saves(small_run, tmp_path):
    run = _hanging_workers(small_run, tmp_path, 1, minutes=1000.0)
    run.wait_for("has waited for data")
    run.process.send_signal(signal.SIGTERM)
    ended = run.end()
    assert (ended.code, ended.left) == (75, []), ended.out
    state = json.loads((tmp_path / "runs/a/state.json").read_text())
    assert state["status"] == "interrupted"
    assert (tmp_path / f"runs/a/checkpoints/step-{state['step']:09d}").is_dir()


def _hanging_workers(small_run: dict, tmp_path: Path, ranks: int, minutes: float) -> Started:
    """Start a run; in its second epoch the data workers of its last rank hang.

    They stop themselves, as if a network drive were dead.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"is_last = os.environ.get('RANK', '0') == '{ranks - 1}'\n"
        "if is_last and 'rebias_dist.train' in ' '.join(sys.orig_argv):\n"
        "    from rebias_dist.data.loader import _Fetcher\n"
        "    fetch = _Fetcher._fetch\n"
        "    def hanging(self, request, place_for):\n"
        "        if request.epoch == 1:\n"
        "            os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        return fetch(self, request, place_for)\n"
        "    _Fetcher._fetch = hanging\n"
    )
    values = {**small_run, "evaluate": {"every_epochs": 1000}}
    values["faults"] = {"step_minutes": minutes}
    values["data"] = {**small_run["data"], "workers": 2}
    arguments = ("--config", write_config(tmp_path / "hanging.yaml", values), "--name", "a")
    command = [sys.executable, "-m", "rebias_dist.train", *arguments]
    command = torchrun_command(2, *arguments) if ranks == 2 else command
    return Started(command, tmp_path, PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")


# ---------------------------------------------------------------------------- data, start


def test_a_shard_damaged_in_mid_epoch(small_run, tmp_path):
    import shutil

    root = tmp_path / "shards"
    shutil.copytree(data_root(validate(small_run)), root)
    config = write_config(tmp_path / "own.yaml", {**small_run, "data": {"root": str(root)}})
    planted = plant(tmp_path / "site", rank=1, point="start of the step", step=4, action="damage",
                    data=str(root))  # fmt: skip
    ended = torchrun(2, "--config", config, "--name", "a", cwd=tmp_path, **planted)
    assert ended.code == 1, ended.out
    assert len(ended.errors) == 1, ended.out
    assert "train-000000.tar" in ended.errors[0]
    assert "exitcode  : 3" in ended.out
    assert ended.left == []


def _rank_zero_of_two(config: str, port: int, cwd: Path, **more: str) -> Ended:
    environment = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"WORLD_SIZE": "2", "MASTER_PORT": str(port), **more}
    return alone("--config", config, "--faults.start_minutes", "0.1", cwd=cwd, **environment)


def test_a_rank_that_does_not_come(config, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = _rank_zero_of_two(config, port, tmp_path)
    assert ended.code == 1
    assert len(ended.errors) == 1, ended.out
    assert f"rank 0, start: the 2 ranks did not come together at 127.0.0.1:{port}" in ended.out
    assert "within 0.1 minutes (rank 1 is missing)" in ended.out
    assert "Traceback" not in ended.out


def test_a_busy_port(config, tmp_path):
    with socket.socket(socket.AF_INET6) as busy:
        busy.bind(("::", 0))
        busy.listen()
        port = busy.getsockname()[1]
        ended = _rank_zero_of_two(config, port, tmp_path)
    assert ended.code == 1
    assert len(ended.errors) == 1, ended.out
    assert f"MASTER_PORT {port} is in use" in ended.out
    assert "Traceback" not in ended.out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_without_a_world(config, tmp_path, rank):
    given = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"} | {"RANK": rank}
    command = [sys.executable, "-m", "rebias_dist.train", "--config", config]
    done = subprocess.run(
        command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=1000
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "WORLD_SIZE" in done.stderr
