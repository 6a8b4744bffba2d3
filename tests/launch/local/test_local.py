"""Supervised runs: real processes that are killed, stopped and told to leave."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.faults.failpoints import TRAINING, WRITING
from tests.faults.processes import DEADLINE, Started, listening, outliving, write_config
from tests.faults.test_resume_exactly import fingerprint, losses, settings
from tests.launch.launched import (
    agents,
    events,
    launch,
    plant_all,
    ranks,
    started,
    state,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def short(small_run, tmp_path):
    """The reference run of 24 steps, as a file."""
    return write_config(tmp_path / "short.yaml", settings(small_run))


@pytest.fixture
def long(small_run, tmp_path):
    """A run that does not end during the test, as a file."""
    values = {**small_run, "epochs": 100_000, "evaluate": {"every_epochs": 100_000}}
    return write_config(tmp_path / "long.yaml", {**values, "checkpoint": {"every_steps": 5}})


def _survives(plans: list[dict], short: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    whole = started("local", short, "--ranks", "2", "--name", "whole", cwd=tmp_path).end()
    assert (whole.code, whole.left) == (0, []), whole.out
    planted = plant_all(tmp_path / "site", plans)
    words = ("local", short, "--ranks", "2", "--name", "a")
    ended = started(*words, cwd=tmp_path, **planted).end(90 * len(plans) + 240)
    assert (ended.code, ended.left) == (0, []), ended.out
    starts = [event for event in events(runs / "a") if event["event"] == "start"]
    assert len(starts) == len(plans) + 1, ended.out
    assert fingerprint(runs / "a") == fingerprint(runs / "whole")
    assert losses(runs / "a") == losses(runs / "whole")


@pytest.mark.slow
def test_six_kills_at_different_moments_leave_the_same_bits(short, tmp_path):
    plans = [
        {"rank": rank, "point": point, "step": step, "action": "kill"}
        for rank, point, step in zip(
            (1, 0, 1, 0, 0, 0), (*TRAINING, *WRITING), (3, 6, 9, 12, 15, 18), strict=True
        )
    ]
    _survives(plans, short, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_restarts_in_a_row(short, tmp_path):
    points = (*TRAINING, *WRITING)
    plans = [
        {
            "rank": 0 if points[step % 6] in WRITING else step % 2,
            "point": points[step % 6],
            "step": step,
            "action": ("kill", "exit")[step % 2],
        }
        for step in range(3, 23)
    ]
    _survives(plans, short, tmp_path)


def test_a_stopped_rank_and_a_killed_torchrun_lead_to_a_restart(long, tmp_path):
    folder = tmp_path / "runs/a"
    words = ("local", long, "--ranks", "2", "--name", "a")
    # Options of torchrun in the environment, of which the first would open its store to all.
    options = {"PET_STANDALONE": "1", "PET_NNODES": "2", "TORCHELASTIC_RESTART_COUNT": "7"}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = started(*words, cwd=tmp_path, before=["nohup"], TMPDIR=str(temporary), **options)
    wait_for_step(run, folder, 6)
    run.process.send_signal(signal.SIGHUP)
    _listens_on_loopback_alone(run)
    os.kill(ranks(run)[1], signal.SIGSTOP)
    wait_until(lambda: "has been stopped for" in run.said(), "detection", run)
    wait_for_step(run, folder, state(folder)["step"] + 1)
    os.kill(agents(run)[0], signal.SIGKILL)
    wait_until(lambda: "torchrun ended by SIGKILL" in run.said(), "detection", run)
    wait_for_step(run, folder, state(folder)["step"] + 1)
    # A scheduler may send both signals; they are one request.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        run.process.send_signal(number)
    ended = run.end()
    assert (ended.code, ended.left) == (75, []), ended.out
    assert state(folder)["status"] == "interrupted"
    assert f"saved at step {state(folder)['step']}" in ended.out
    assert [event.get("code") for event in events(folder) if event["event"] == "end"] == [
        None,
        None,
        75,
    ]
    starts = [event["checkpoint"] for event in events(folder) if event["event"] == "start"]
    assert starts[0] is None
    assert 0 < starts[1] <= starts[2]
    assert not list(temporary.glob("torchelastic_*"))


def _listens_on_loopback_alone(run: Started) -> None:
    found = listening(outliving(run.mark))
    # torchrun's store and the connections of two ranks.
    assert len(found) >= 3, found
    assert all(address.startswith("127.") for address in found), found


def test_a_killed_launcher_leaves_nothing_and_the_run_goes_on(long, tmp_path):
    folder = tmp_path / "runs/a"
    run = started("local", long, "--ranks", "2", "--name", "a", cwd=tmp_path)
    wait_for_step(run, folder, 6)
    # A run has one owner: a second launcher, resume and a job are refused, and name the first.
    record = (folder / "launcher/record.json").read_bytes()
    job = ("slurm", long, "--name", "a", "--cpu")
    for words in (("local", long, "--name", "a"), ("resume", "a"), job):
        second = launch(*words, cwd=tmp_path)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1), second.stderr
        assert str(run.process.pid) in second.stderr
    assert (folder / "launcher/record.json").read_bytes() == record
    shown = json.loads(launch("status", "a", "--json", cwd=tmp_path).stdout)
    assert (shown["status"], shown["launcher_pid"]) == ("running", run.process.pid)
    assert shown["trainer_pid"] == ranks(run)[0]
    assert shown["images_per_s"] > 0
    assert shown["step"] > 6
    followed = started("logs", "a", "-f", "--rank", "1", cwd=tmp_path)
    run.process.kill()
    ended = run.end()
    assert (ended.code, ended.left) == (-signal.SIGKILL, []), ended.left
    assert followed.end().code == 0
    assert "(a: dead)" in followed.said()
    assert json.loads(launch("list", "--json", cwd=tmp_path).stdout)["status"] == "dead"
    assert "not at work (dead)" in launch("stop", "a", cwd=tmp_path).stdout

    before = state(folder)["step"]
    # The run resumes from another folder, without the file that it was started with.
    (tmp_path / "long.yaml").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = started("resume", "a", "--runs-dir", str(tmp_path / "runs"), cwd=elsewhere)
    wait_for_step(again, folder, before + 1)
    stopped = launch("stop", "a", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "a: interrupted" in stopped.stdout
    ended = again.end()
    assert (ended.code, ended.left) == (75, []), ended.out
    assert "continuing a after step" in ended.out
    assert "Traceback" not in ended.out  # torchrun's, about the exit code 75
    assert "ChildFailedError" not in (folder / "logs/output.log").read_text()
    assert len(ranks(again)) == 0


@pytest.mark.slow
def test_ctrl_c_twice_kills_at_once_and_one_rank_alone_is_no_reason_to_leave(long, tmp_path):
    folder = tmp_path / "runs/a"
    run = started("local", long, "--ranks", "2", "--name", "a", cwd=tmp_path)
    wait_for_step(run, folder, 3)
    os.kill(ranks(run)[1], signal.SIGTERM)
    wait_until(lambda: "restart 1 from step" in run.said(), "restart", run)
    wait_for_step(run, folder, state(folder)["step"] + 1)
    os.kill(ranks(run)[0], signal.SIGKILL)
    wait_until(lambda: "restart 2 from step" in run.said(), "restart", run)
    assert "rank 0 was killed by SIGKILL" in run.said()
    wait_for_step(run, folder, state(folder)["step"] + 1)
    # A rank that cannot answer: only the second request gets rid of it.
    os.kill(ranks(run)[1], signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    ended = run.end()
    assert (ended.code, ended.left) == (1, []), ended.out
    assert "killed at the second request" in ended.out


def test_a_stop_whose_save_fails_is_no_interruption_after_a_save(small_run, tmp_path):
    values = {**small_run, "epochs": 100_000, "evaluate": {"every_epochs": 100_000}}
    config = write_config(tmp_path / "unsaved.yaml", values)
    folder = tmp_path / "runs/a"
    run = started("local", config, "--name", "a", cwd=tmp_path)
    wait_for_step(run, folder, 2)
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("a file where the folder should be")
    run.process.send_signal(signal.SIGTERM)
    ended = run.end()
    assert (ended.code, ended.left) == (1, []), ended.out
    assert "a checkpoint could not be saved" in ended.out
    assert "resume' goes on" not in ended.out


def test_a_launcher_whose_output_nobody_reads_still_hears(long, tmp_path):
    """As under a pager that was paused, or a connection that hangs."""
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, b"-" * 4096)
    os.set_blocking(full, True)
    folder = tmp_path / "runs/a"
    command = [sys.executable, "-m", "launch", "local", long, "--name", "a"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, cwd=tmp_path, env=given, stderr=full, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: state(folder).get("step", 0) > 3, "step 3")
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 75
    finally:
        run.kill()
        os.close(full)
        os.close(unread)
    assert state(folder)["status"] == "interrupted"
    lines = (folder / "logs/output.log").read_text().splitlines()
    assert lines[-1].startswith("rebias-launch: a: interrupted; 'rebias-launch resume'")


@pytest.mark.parametrize("small_disk", [8], indirect=True)
@pytest.mark.parametrize(
    "how", ["the save fails", pytest.param("a rank is killed", marks=pytest.mark.slow)]
)
def test_a_full_disk_is_named(small_run, small_disk, tmp_path, how):
    values = {**small_run, "runs_dir": str(small_disk / "runs"), "epochs": 100_000}
    values |= {"evaluate": {"every_epochs": 100_000}, "checkpoint": {"every_steps": 5}}
    config = write_config(tmp_path / "long.yaml", values)
    folder = small_disk / "runs/a"
    run = started("local", config, "--name", "a", cwd=tmp_path)
    wait_for_step(run, folder, 6)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if how == "a rank is killed":
        os.kill(ranks(run)[0], signal.SIGKILL)
    ended = run.end()
    assert (ended.code, ended.left) == (1, []), ended.out
    assert f"{folder}: cannot be written (No space left on device)" in ended.out
    (small_disk / "filler").unlink()
    again = started("resume", "a", "--runs-dir", str(small_disk / "runs"), cwd=tmp_path)
    wait_until(lambda: "continuing a after step" in again.said(), "resumption", again)
    again.process.send_signal(signal.SIGTERM)
    ended = again.end()
    assert (ended.code, ended.left) == (75, []), ended.out


@pytest.mark.slow
def test_two_runs_at_a_time(short, tmp_path):
    runs = [started("local", short, "--ranks", "2", "--name", name, cwd=tmp_path) for name in "ab"]
    ended = [run.end() for run in runs]
    assert [(e.code, e.left) for e in ended] == [(0, []), (0, [])], ended
    assert fingerprint(tmp_path / "runs/a") == fingerprint(tmp_path / "runs/b")
    again = launch("local", short, "--ranks", "2", "--name", "a", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stderr


@pytest.mark.slow
def test_a_refused_launch_does_not_change_how_a_run_by_hand_is_resumed(small_run, tmp_path):
    values = {**small_run, "max_steps": 2}
    command = [sys.executable, "-m", "rebias_dist.train", "--config"]
    command += [write_config(tmp_path / "hand.yaml", values), "--name", "a"]
    assert Started(command, tmp_path).end().code == 0
    other = write_config(tmp_path / "other.yaml", {**values, "seed": 5})
    refused = launch("local", other, "--name", "a", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "seed: 0 → 5" in refused.stderr
    resumed = launch("resume", "a", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "finished already" in resumed.stderr


def test_exit_codes_when_no_restart_can_help(small_run, short, tmp_path):
    runs = tmp_path / "runs"
    lost = write_config(tmp_path / "lost.yaml", {**small_run, "data": {"root": "nowhere"}})
    refused = launch("local", lost, "--name", "a", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "no shards here" in refused.stderr
    assert not (runs / "a").exists()

    nan = plant_all(
        tmp_path / "nan", [{"rank": 0, "point": "start of the step", "step": 3, "action": "nan"}]
    )
    given_up = started("local", short, "--name", "b", cwd=tmp_path, **nan).end()
    assert (given_up.code, given_up.left) == (3, []), given_up.out
    assert len([e for e in events(runs / "b") if e["event"] == "start"]) == 1

    # Every attempt ends before it has saved anything.
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import os\nif 'RANK' in os.environ:\n    os._exit(1)\n"
    )
    crashing = started(
        *("local", short, "--name", "c", "--", "--faults.restarts", "1"),
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}",
    ).end()
    assert (crashing.code, crashing.left) == (3, []), crashing.out
    assert "brought no newer checkpoint" in crashing.out
    assert len([e for e in events(runs / "c") if e["event"] == "start"]) == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("local", "no/such"), "no/such"),
        (("local", "biased_mnist/demo", "--ranks", "0"), "--ranks"),
        (("local", "biased_mnist/demo", "--ranks", "9"), "at most 8 ranks"),
        (("local", "biased_mnist/demo", "--hang-timeout", "nan"), "--hang-timeout"),
        (("local", "biased_mnist/demo", "--name", "x; touch y"), "'x; touch y'"),
        (("local", "biased_mnist/demo", "--name", "a\nb"), r"'a\nb'"),
        (("local", "biased_mnist/demo", "--", "--lr", "1"), "--optimizer.lr"),
        (("local", "biased_mnist/demo", "--name", "a", "--", "--dry-run"), "use rebias-train"),
        (("local",), "CONFIG"),
        (("stop", "x; touch y"), "'x; touch y'"),
        (("status", "../etc"), "'../etc'"),
        (("logs", "a\nb"), r"'a\nb'"),
        (("resume", "absent"), "'absent'"),
        (("tensorboard", "absent"), "'absent'"),
        (("list", "--", "--active"), "'--active'"),
        (("resume", "absent", "--", "--optimizer.lr", "1"), "'--optimizer.lr 1'"),
        (("start", "a"), "start"),
        ((), "COMMAND"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(tmp_path, words, named):
    done = launch(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert named in done.stderr
    assert list(tmp_path.iterdir()) == []
