"""Files that appear whole, whoever else is at work."""

import os
import subprocess
import sys

import pytest

from data_shards.audit import overlaps
from data_shards.audit.overlaps import write_overlaps
from data_shards.system.file_system import lock
from data_shards.system.files import (
    HeldError,
    hold,
    remove_stale,
    staged_folder,
    temporary_file,
    write_synced,
)
from tests import ROOT
from tests.data_shards.converted import converted, listing


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "a"
    begun = []

    def fsync(descriptor):
        if not begun:  # another writer comes and goes before this one ends
            begun.append(descriptor)
            write_synced(path, b"other")
            assert path.read_bytes() == b"other"

    monkeypatch.setattr(os, "fsync", fsync)
    write_synced(path, b"one")
    assert begun
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_only_this_machines_dead_files_are_removed(tmp_path):
    with temporary_file(tmp_path, "a.tar") as (alive, _):
        host, _, token = alive.name.rpartition(".")[2].partition("-")
        dead = tmp_path / f"b.tar.{host}-{token}"
        # Locks of another machine are not seen on every file system.
        elsewhere = tmp_path / f"b.tar.{'0' * len(host)}-{token}"
        for path in (dead, elsewhere):
            path.touch()
        remove_stale(tmp_path)
        assert set(tmp_path.iterdir()) == {alive, elsewhere}


def test_a_split_that_appears_meanwhile_is_compared(tmp_path, monkeypatch):
    """The slower of two commands must not write the list without it over the fuller one."""
    for split in ("test", "train"):
        converted(listing(tmp_path / f"in-{split}", 3, split=split), tmp_path / "out")
    told = []

    def write(path, content):
        if not told:
            told.append(content)
            converted(listing(tmp_path / "in-val", 3, split="val"), tmp_path / "out")
            told.append(write_overlaps(tmp_path / "out", 1))
        write_synced(path, content)

    monkeypatch.setattr(overlaps, "write_synced", write)
    found = write_overlaps(tmp_path / "out", 1)
    assert found == told[1]
    assert sorted(finding.path for finding in found) == [
        *("train/k0", "train/k1", "train/k2"),
        *("val/k0", "val/k1", "val/k2"),
    ]
    lines = (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()
    assert lines == [finding.to_json() for finding in found]


def test_a_held_file_names_its_holder_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    path.write_text("what a longer name of a former holder has left here" * 3)
    with hold(path, "launcher"):
        with pytest.raises(HeldError, match=f"^launcher {os.getpid()} on "):
            hold(path, "process")
        assert path.read_text() == f"launcher {os.getpid()} on {os.uname().nodename}"
    path.write_text("")
    with path.open("rb") as file:
        assert lock(file, wait=False)
        with pytest.raises(HeldError, match=r"^another process$"):
            hold(path, "process")
    hold(path, "process").close()
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="link"):
        hold(tmp_path / "link", "process")


KILLED = """
import os, signal, sys
from pathlib import Path
from data_shards.system.files import staged_folder, write_synced
folder = Path(sys.argv[1])
with staged_folder(folder / "made") as staged:
    (staged / "half").write_bytes(b"x")
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    write_synced(folder / "file", b"x")
"""


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 3  # a folder, the file of its process, a half file
    with staged_folder(tmp_path / "another") as staged:
        with staged_folder(tmp_path / "beside") as alive:
            (alive / "file").touch()
            assert staged.exists()
        assert {path.name for path in tmp_path.iterdir() if path != staged} == {
            *("beside", staged.stem),
        }
    assert {path.name for path in tmp_path.iterdir()} == {"another", "beside"}
