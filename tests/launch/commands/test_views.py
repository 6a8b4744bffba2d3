"""Commands that show runs: live, dead and damaged ones."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.record.locks import lock_holder
from launch.record.runs import find_runs, look_at, run_folder
from rebias_dist.errors import ConfigError
from tests.launch.launched import ROOT, launch, wait_until

COMMANDS = ("local", "slurm", "kubernetes", "list", "status", "logs", "stop", "resume")
COMMANDS += ("tensorboard",)


def make_run(runs: Path, name: str, **values: object) -> Path:
    """Make the folder of a run without a process; its state has the given values."""
    folder = runs / name
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    (folder / "lock").touch()
    state = {
        **{"name": name, "method": "rebias", "host": platform.node(), "status": "running"},
        **{"step": 7, "total_steps": 10, "epoch": 1, "eta_seconds": 3.0, "images_per_s": 12.5},
        **{"updated": time.time(), "world_size": 2},
        **values,
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def status_of(folder: Path) -> str:
    (found,) = look_at([folder])
    return found.status


def test_a_run_is_alive_only_while_its_lock_is_held(tmp_path):
    folder = make_run(tmp_path, "a")
    assert status_of(folder) == "dead"
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); "
            "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)",
            str(folder / "lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lock_holder(folder / "lock") == holder.pid
        (found,) = look_at([folder])
        assert (found.status, found.trainer_pid) == ("running", holder.pid)
        assert found.images_per_s == 12.5
        # The state that an earlier attempt left does not describe this one.
        for left_over in ("failed", "interrupted", "finished"):
            text = (folder / "state.json").read_text()
            (folder / "state.json").write_text(text.replace('"running"', f'"{left_over}"'))
            assert status_of(folder) == "starting"
            (folder / "state.json").write_text(text)
        # Looking at the run does not disturb a process that takes the lock.
        holder.kill()
        holder.wait()
        with (folder / "lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert status_of(folder) == "running"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    (found,) = look_at([folder])
    assert (found.status, found.images_per_s, found.eta_seconds) == ("dead", None, None)


def test_a_run_on_another_machine_is_believed_as_long_as_it_has_news(tmp_path):
    fresh = make_run(tmp_path, "fresh", host="elsewhere")
    silent = make_run(tmp_path, "silent", host="elsewhere", updated=time.time() - 3600)
    assert (status_of(fresh), status_of(silent)) == ("running", "silent")
    refused = launch("stop", "fresh", "--runs-dir", str(tmp_path), cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "elsewhere" in refused.stderr


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b"{}" * 9),
        b'{"status": 5, "step": "seven"}',
        b'{"status": ["running"], "step": {"a": 1}, "updated": true}',
    ],
)
def test_damaged_states(tmp_path, content):
    folder = make_run(tmp_path, "a")
    (folder / "state.json").write_bytes(content)
    (folder / "metrics.jsonl").write_bytes(content + b'\n{"x_accuracy": 1}\n{"a_accuracy": ')
    (folder / "launcher").mkdir()
    (folder / "launcher/record.json").write_bytes(content)
    assert status_of(folder) == "damaged"
    shown = launch("list", "--json", "--runs-dir", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["status"] == "damaged"


@contextmanager
def without_privileges() -> Iterator[None]:
    """Be a user to whom the permissions of files apply, unlike root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_may_not_be_entered_hides_no_other_run(tmp_path, monkeypatch):
    # The paths are relative, because only this user may enter the folders above.
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    runs = Path("runs")
    closed = make_run(runs, "closed")
    open_one = make_run(runs, "open")
    assert status_of(open_one) == "dead"
    closed.chmod(0)
    with without_privileges():
        assert find_runs("runs") == [open_one]
        assert status_of(closed) == "new"
    runs.chmod(0)
    with without_privileges(), pytest.raises(ConfigError, match="runs cannot be read: Permission"):
        find_runs("runs")
    runs.chmod(0o755)
    closed.chmod(0o755)


def test_values_that_no_run_writes_are_unknown(tmp_path):
    folder = make_run(
        tmp_path, "a", step=10**200, images_per_s=1e300, method="\x1b[31m", epoch=True
    )
    (found,) = look_at([folder])
    assert (found.step, found.images_per_s, found.method, found.epoch) == (None,) * 4
    assert found.total_steps == 10
    text = (folder / "state.json").read_text()
    for no_json in ("NaN", "1e999", "9" * 400):
        (folder / "state.json").write_text(text.replace("3.0", no_json))
        assert status_of(folder) == "damaged"


def test_only_regular_files_are_opened(tmp_path):
    folder = make_run(tmp_path / "runs", "a")
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    os.mkfifo(folder / "metrics.jsonl")
    os.mkfifo(folder / "logs/rank0.log")
    (folder / "logs/rank1.log").symlink_to("/etc/passwd")
    (tmp_path / "runs/linked").symlink_to(folder)
    (tmp_path / "runs/.hidden").mkdir()
    (tmp_path / "runs/x; touch y").mkdir()
    (tmp_path / "runs/file").touch()
    assert [found.name for found in find_runs(str(tmp_path / "runs"))] == ["a"]
    assert status_of(folder) == "damaged"
    for rank in "01":
        read = launch("logs", "a", "--rank", rank, cwd=tmp_path)
        assert (read.returncode, read.stdout) == (2, ""), read.stderr
        assert f"rank{rank}.log" in read.stderr


def test_the_newest_accuracy_that_counts(tmp_path):
    folder = make_run(tmp_path, "a")
    lines = [
        {"step": 1, "selection/f_accuracy": 0.25, "selection/g0_accuracy": 0.9},
        {"step": 2, "biased/f_accuracy": 0.99, "unbiased/f_accuracy": 0.5, "rho0/f_accuracy": 0.1},
        *({"step": 3, "f/accuracy": 0.7, "padding": "x" * 100} for _ in range(2000)),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = look_at([folder])
    assert (found.accuracy, found.accuracy_of) == (0.5, "unbiased")
    (folder / "metrics.jsonl").write_text('{"step": 1, "selection/g0_accuracy": 0.9}\n')
    (found,) = look_at([folder])
    assert (found.accuracy, found.accuracy_of) == (0.9, "selection")


def test_a_table_of_two_hundred_runs(tmp_path):
    for number in range(200):
        folder = make_run(tmp_path / "runs", f"run-{number:03d}", status="finished", step=number)
        (folder / "metrics.jsonl").write_text('{"step": 1, "unbiased/f_accuracy": 0.5}\n' * 99)
    shown = launch("list", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()[1:]]
    assert sorted(row[0] for row in rows) == [f"run-{number:03d}" for number in range(200)]
    for row in rows:
        assert row[3] == f"{int(row[0][4:])}/10"
    objects = launch("list", "--json", cwd=tmp_path).stdout.splitlines()
    assert {json.loads(line)["status"] for line in objects} == {"finished"}
    assert launch("list", "--active", cwd=tmp_path).stdout == "no runs in runs\n"


def test_logs_from_the_end_without_control_characters(tmp_path):
    folder = make_run(tmp_path / "runs", "a", status="finished")
    lines = [f"line {number} \x1b]0;title\x07 {'é' * 50}" for number in range(3000)]
    (folder / "logs/rank0.log").write_text("\n".join(lines) + "\n")
    for count in (0, 5, 2999, 3000):
        read = launch("logs", "a", "-n", str(count), cwd=tmp_path)
        shown = read.stdout.splitlines()
        assert len(shown) == min(count, 3000)
        assert [line.split()[1] for line in shown] == [
            str(n) for n in range(3000 - len(shown), 3000)
        ]
        assert "\x1b" not in read.stdout
        assert "\x07" not in read.stdout
    (folder / "logs/rank0.log").write_text("one\ntwo\nthree")
    assert launch("logs", "a", "-n", "2", cwd=tmp_path).stdout == "two\nthree"
    assert launch("logs", "a", "-f", cwd=tmp_path).stdout == "one\ntwo\nthree"
    assert "0" in launch("logs", "a", "--rank", "3", cwd=tmp_path).stderr


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "a;b", "$(x)", "a\n", "é"])
def test_names(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a run"):
        run_folder(str(tmp_path), name)


def test_help_of_all_commands_has_examples(tmp_path):
    assert all(command in launch("--help", cwd=tmp_path).stdout for command in COMMANDS)
    for command in COMMANDS:
        shown = launch(command, "--help", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        examples = shown.stdout.partition("examples:\n")[2]
        assert f"rebias-launch {command}" in examples
        assert "exit codes:" in examples


def test_views_do_without_torch(tmp_path):
    make_run(tmp_path / "runs", "a", status="finished")
    for words in (["list"], ["status", "a"], ["stop", "a"], ["local", "--help"]):
        code = (
            "import sys\nfrom launch.__main__ import main\n"
            f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr


def test_tensorboard_on_loopback(tmp_path):
    """TensorBoard answers at the printed address, and listens nowhere else."""
    import re
    import urllib.request

    make_run(tmp_path / "runs", "a", status="finished")
    output = tmp_path / "output"
    with output.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "launch", "tensorboard", "a"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "ssh -N -L" in output.read_text(), "the tunnel line")
        port = re.search(r"127\.0\.0\.1:(\d+)/", output.read_text())[1]

        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs") as answer:
                    return answer.status == 200
            except OSError:
                return False

        wait_until(answers, "an answer")
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        at = [line.split()[1] for line in listening.splitlines() if line.split()[3] == "0A"]
        assert [place for place in at if place.endswith(f":{int(port):04X}")] == [
            f"0100007F:{int(port):04X}"
        ]
    finally:
        server.kill()
        server.wait()
