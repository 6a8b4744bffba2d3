"""Worker processes that cannot deliver: what the process that waits for them does and says."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from rebias_dist.data import ShardDataset
from rebias_dist.errors import RebiasError
from tests import ROOT
from tests.data.layouts import loader_of

PROGRAM = """
    import multiprocessing, os, signal, sys, threading, time
    import torch
    from rebias_dist.data import ShardDataset, TrainLoader
    from rebias_dist.data.workers import bounded_waits
    from rebias_dist.errors import RebiasError

    dataset = ShardDataset(sys.argv[1])
    loader = TrainLoader(dataset, global_batch=10, micro_batch=5, seed=0, workers=2)

    def stop_workers():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGSTOP)
"""


def said(shards, code: str, before=(), **environment: str) -> str:
    """Run a program to its end, which must be a regular one, and return what it prints."""
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(code)
    done = subprocess.run(
        [*before, sys.executable, "-c", program, str(shards / "train")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr
    # torch complains about its own half-made iterator.
    assert done.stderr == "" or done.stderr.startswith("Exception ignored in: <function _Multi")
    return done.stdout.strip()


def test_a_long_temporary_folder(shards, tmp_path):
    folder = tmp_path / "/".join(["directory-name"] * 12)
    folder.mkdir(parents=True)
    count = "print(len(list(loader.epoch(0))), len(os.environ['TMPDIR']) > 180)"
    assert said(shards, count, TMPDIR=str(folder)) == "27 True"


def test_workers_that_hang_are_waited_for_no_longer_than_the_bound(shards):
    """Stopped ones stand for a dead network drive. They do not keep the program from ending.

    They are stopped while their first images are under way.
    """
    found = said(
        shards,
        """
        with bounded_waits(0.04, lambda: False):
            steps = loader.on_device(torch.device("cpu"), 0, 0)
            next(steps)
            stop_workers()
            faults = [str(fault) for _, fault in steps if fault is not None]
        print(*faults)
        """,
    )
    assert re.match(r"no data for \d+ s: a data worker hangs", found)


def test_a_stop_is_heard_while_workers_hang(shards):
    """The caller gets no micro-batches and no error: it tells the other ranks, and saves."""
    found = said(
        shards,
        """
        asked = threading.Event()
        with bounded_waits(1000.0, asked.is_set):
            steps = loader.on_device(torch.device("cpu"), 0, 0)
            next(steps)
            stop_workers()
            threading.Timer(3.0, asked.set).start()
            last = [found for found in steps][-1]
        print(last)
        """,
    )
    assert found == "([], None)"


def test_hanging_workers_do_not_outlive_a_program_that_ends_for_another_reason(shards):
    code = "steps = loader.epoch(0); next(steps); stop_workers(); print('done', flush=True)"
    assert said(shards, code) == "done"


def test_more_workers_than_cores_are_the_users_choice(shards):
    code = """
        loader = TrainLoader(dataset, global_batch=10, micro_batch=5, seed=0, workers=2)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(len(list(loader.epoch(0))))
    """
    assert said(shards, code) == "27"


def _broken(image, epoch, sample):
    return 1 // 0


def _killed(image, epoch, sample):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (_broken, r"^data worker \d: ZeroDivisionError: integer division or modulo by zero"),
        (_killed, r"^data workers: DataLoader worker \(pid.* (Killed|exited unexpectedly)"),
    ],
)
def test_a_worker_that_fails_keeps_its_cause_in_one_line(shards, transform, words, caplog):
    loader = loader_of(ShardDataset(shards / "train"), workers=2, transform=transform)
    with pytest.raises(RebiasError, match=words) as caught:
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)
    # A mistake in the code is found by its traceback, which goes to the log.
    assert ("1 // 0" in caplog.text) == (transform is _broken)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("100k", "27"),  # enough for any images: they do not lie there
        ("4k", r"data workers: they cannot be started \(No .*/dev/shm is full: .*--shm-size.*"),
    ],
)
def test_a_small_dev_shm(shards, size, words):
    small = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", small, "sh"]
    if subprocess.run([*before, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount another /dev/shm")
    found = said(
        shards,
        """
        try:
            print(len(list(loader.epoch(0))))
        except RebiasError as error:
            print(error)
        """,
        before,
    )
    assert re.fullmatch(words, found), found
