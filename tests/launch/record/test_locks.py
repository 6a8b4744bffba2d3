"""A lock belongs to a folder, however many names its file has."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_shards.system.files import HeldError, hold
from launch.record.locks import launcher_lock, lock_holder, trainer_lock
from launch.record.runs import look_at
from tests import ROOT
from tests.launch.commands.test_views import make_run
from tests.launch.launched import launch

HOLD = (
    "import sys, time; from pathlib import Path; from data_shards.system.files import hold\n"
    "held = [hold(Path(path), 'launcher') for path in sys.argv[1:]]\n"
    "print('held', flush=True); time.sleep(1000)"
)


@contextmanager
def holding(*paths: Path) -> Iterator[subprocess.Popen[bytes]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_copy_by_hard_links_is_not_at_work_and_its_stop_stops_nothing(tmp_path):
    original = make_run(tmp_path / "runs", "ctl")
    launcher_lock(original).parent.mkdir()
    locks = (trainer_lock(original), launcher_lock(original))
    with holding(*locks) as holder:
        snap = original.with_name("snap")
        subprocess.run(["cp", "-al", str(original), str(snap)], check=True)
        for lock in (trainer_lock, launcher_lock):
            assert lock_holder(lock(original)) == holder.pid
            assert lock_holder(lock(snap)) is None
        assert [run.status for run in look_at([original, snap])] == ["running", "dead"]
        done = launch("stop", "snap", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "snap: not at work (dead)\n")
        assert holder.poll() is None
        # To train there as well would write to files that both folders share.
        with pytest.raises(
            HeldError, match=rf"{holder.pid} on .* shares .*snap/lock by a hard link"
        ):
            hold(trainer_lock(snap), "process")
        # The folder may be reached by another path, and may be moved.
        (tmp_path / "link").symlink_to(original.parent)
        assert lock_holder(tmp_path / "link/ctl/lock") == holder.pid
        moved = original.rename(original.with_name("moved"))
        assert lock_holder(trainer_lock(moved)) == holder.pid
        assert lock_holder(trainer_lock(snap)) is None


def test_the_run_beside_a_copy_that_is_at_work_itself(tmp_path):
    """The copy trains, and the original, which is at rest, is not taken for it."""
    original = make_run(tmp_path / "runs", "ctl")
    snap = original.with_name("snap")
    subprocess.run(["cp", "-al", str(original), str(snap)], check=True)
    with holding(trainer_lock(snap)) as holder:
        assert lock_holder(trainer_lock(snap)) == holder.pid
        assert lock_holder(trainer_lock(original)) is None
