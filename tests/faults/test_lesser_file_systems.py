"""NFS without locks, CIFS and FUSE: what works there, and what is said to be unprotected."""

import errno
import json
import os
import subprocess
import sys

import pytest

from data_shards.__main__ import cli as data_shards
from data_shards.system import file_system
from data_shards.system.file_system import lock, sync_folder
from data_shards.system.files import hold, remove_stale, staged_folder
from rebias_dist.commands.train import cli as train
from tests.data_shards.tiny import tree
from tests.data_shards.trees import train_images, write_folder
from tests.faults.lesser import install, lesser
from tests.faults.processes import write_config
from tests.launch.launched import launch, started, state, wait_until

LOCKS = "the file system has no locks, so "
FOLDERS = "the file system syncs no folders, so "
CACHE = "what is read back may come from the cache, so "
MAPS = "the file system maps no files, so "


@pytest.fixture
def here(monkeypatch):
    """This process finds itself on a lesser file system."""
    for module, name in (
        ("fcntl", "flock"),
        ("os", "fsync"),
        ("os", "posix_fadvise"),
        ("mmap", "mmap"),
    ):
        monkeypatch.setattr(f"{module}.{name}", getattr(sys.modules[module], name))
    monkeypatch.setattr(file_system, "_said", set())
    install()


def test_shards_are_the_same_and_each_loss_is_said_once(tmp_path, capsys):
    source = write_folder(tmp_path / "source", train_images(each=4))
    command = ["convert", "imagenet9", "--source", str(source), "--split", "train"]
    command += ["--selection-fraction", "0", "--samples-per-shard", "3", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "data_shards", *command, "--output", str(tmp_path / "lesser")],
        env={**os.environ, **lesser(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr
    for lost in (LOCKS, FOLDERS, CACHE, MAPS):
        assert done.stderr.count(lost) == 1, done.stderr
    assert data_shards([*command, "--output", str(tmp_path / "whole")]) == 0
    assert tree(tmp_path / "lesser") == tree(tmp_path / "whole")


def test_training_goes_on_and_says_what_is_unprotected(small_run, tmp_path, here, caplog):
    config = write_config(tmp_path / "config.yaml", {**small_run, "name": "a", "max_steps": 3})
    with pytest.raises(SystemExit) as left:
        train(["--config", config])
    assert left.value.code == 0
    said = [
        record.message
        for record in caplog.records
        if record.name == "data_shards.system.file_system"
    ]
    unprotected = "nothing keeps a second process on another machine from working here"
    assert [LOCKS + unprotected in line for line in said].count(True) == 1, said
    assert [MAPS in line for line in said].count(True) == 1
    assert len(said) == len({line.partition(": ")[2].partition(": ")[2] for line in said})


def test_a_second_process_of_this_machine_is_refused_without_locks(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from data_shards.system.files import hold\n"
        "file = hold(Path(sys.argv[1]), 'process'); print('held', flush=True); time.sleep(1000)"
    )
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, **lesser(tmp_path / "site")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        again = [sys.executable, "-c", code, str(path)]
        environment = {**os.environ, **lesser(tmp_path / "site")}
        done = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
        assert f"HeldError: process {holder.pid} on " in done.stderr
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    hold(path, "process").close()  # its name is still there, but it lives no more


def test_nothing_is_removed_without_locks(tmp_path, here):
    with staged_folder(tmp_path / "a") as staged:
        (staged / "file").touch()
        with staged_folder(tmp_path / "b"):
            pass
        assert (staged / "file").exists()
        remove_stale(tmp_path)
    assert (tmp_path / "a" / "file").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_fault_is_no_lack(tmp_path, monkeypatch, number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync_folder(tmp_path)
    with (tmp_path / "lock").open("wb") as file, pytest.raises(OSError, match=os.strerror(number)):
        lock(file, wait=True)


@pytest.mark.slow
def test_the_launcher_finds_and_stops_a_run_without_locks(small_run, tmp_path):
    config = write_config(tmp_path / "config.yaml", {**small_run, "epochs": 100_000})
    environment = lesser(tmp_path / "site")
    folder = tmp_path / "runs/a"
    run = started("local", config, "--name", "a", "--ranks", "2", cwd=tmp_path, **environment)
    wait_until(lambda: state(folder).get("step", 0) > 2, "no step", run)
    listed = json.loads(launch("list", "--json", cwd=tmp_path).stdout)
    assert (listed["status"], listed["launcher_pid"]) == ("running", run.process.pid)
    again = started("local", config, "--name", "a", cwd=tmp_path, **environment).end()
    assert again.code == 2
    assert f"launcher {run.process.pid} on " in again.out
    assert launch("stop", "a", cwd=tmp_path).stdout.endswith("a: interrupted\n")
    ended = run.end()
    assert (ended.code, ended.left) == (75, [])
    assert ended.out.count(LOCKS + "nothing keeps a second launcher") == 1
