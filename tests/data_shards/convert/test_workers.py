import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data_shards.convert.workers import Crash, map_surviving, mark
from tests import ROOT

MB = 2**20


def _obey(order):
    """What the tests run in a worker: a number is squared, a word does harm."""
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == "leave":
        os._exit(0)
    if order == "hang":
        time.sleep(600)
    if order == "pause":
        time.sleep(0.9)
        return 0
    if order == "spin":  # in C, where Python neither switches threads nor looks for signals
        sum(itertools.repeat(1))
    if order == "hungry":
        return len(bytearray(600 * MB))
    if order == "raise":
        raise ValueError("as asked")
    return order**2


def _kill_once(flag, order):
    if order == "victim" and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return order


def _in_parts(parts):
    for position, part in enumerate(parts):
        mark(position)
        _obey(part)
    return len(parts)


def _used(size):
    return len(bytearray(size))


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (1, 7), (2, 3)])
def test_results_in_the_order_of_the_items(workers, chunk):
    items = range(50)
    results = list(map_surviving(_obey, items, workers=workers, chunk=chunk))
    assert results == [item**2 for item in items]


def test_the_fault_is_found_and_the_rest_goes_on():
    orders = list(range(20))
    orders[3], orders[4], orders[11], orders[19] = "kill", "segfault", "hungry", "leave"
    results = list(map_surviving(_obey, orders, workers=2, chunk=8))
    expected = [order if isinstance(order, str) else order**2 for order in orders]
    expected[3] = expected[4] = expected[19] = Crash("crashed", -1)
    expected[11] = Crash("memory", -1)
    assert results == expected


@pytest.mark.parametrize("how", ["hang", "spin"])
def test_a_hanging_item_is_ended_and_named(how):
    orders = [1, how, 2, 3]
    results = list(map_surviving(_obey, orders, workers=1, chunk=4, seconds=0.5))
    assert results == [1, Crash("timeout", -1), 4, 9]


def test_a_kill_from_outside_blames_no_item(tmp_path):
    function = functools.partial(_kill_once, Path(tmp_path / "killed"))
    orders = ["a", "victim", "b"]
    for chunk in (1, 3):
        (tmp_path / "killed").unlink(missing_ok=True)
        assert list(map_surviving(function, orders, workers=1, chunk=chunk)) == orders
        assert (tmp_path / "killed").exists()


def test_a_crash_names_the_marked_part():
    results = list(map_surviving(_in_parts, [[1, 2], [1, 2, "kill", 3], [4]], workers=1))
    assert results == [2, Crash("crashed", 2), 1]


def test_a_mark_restarts_the_clock():
    orders = [["pause"] * 4, [1, "hang"]]
    assert list(map_surviving(_in_parts, orders, workers=1, seconds=3.0)) == [
        4,
        Crash("timeout", 1),
    ]


def test_an_exception_ends_the_map():
    with pytest.raises(ValueError, match="as asked"):
        list(map_surviving(_obey, [1, 2, "raise", 3], workers=1))


def test_memory_is_bounded():
    sizes = [50 * MB, 400 * MB, 520 * MB]
    results = list(map_surviving(_used, sizes, workers=1, memory=480 * MB))
    assert results == [*sizes[:2], Crash("memory", -1)]


def test_items_are_drawn_as_they_are_needed_and_closing_ends_the_workers():
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    results = map_surviving(_obey, endless(), workers=1, chunk=2)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()
    assert len(drawn) < 60


@pytest.mark.parametrize("moment", ["send", "recv"])
def test_an_interrupt_while_a_worker_changes_hands_ends_it_too(monkeypatch, moment):
    """Otherwise it goes on with its item, and its files are left."""
    plain = getattr(Connection, moment)

    def interrupted(self, *arguments):
        plain(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, moment, interrupted)
    results = map_surviving(abs, [-1], workers=1)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert multiprocessing.active_children() == []


def _note_and_hang(path):
    path.write_text(str(os.getpid()))
    time.sleep(600)


def _note_and_spin(path):
    path.write_text(str(os.getpid()))
    _obey("spin")


@pytest.mark.parametrize("function", ["_note_and_hang", "_note_and_spin"])
def test_workers_end_when_their_parent_is_killed(tmp_path, function):
    note = tmp_path / "pid"
    script = (
        "from pathlib import Path\n"
        "from data_shards.convert.workers import map_surviving\n"
        f"from tests.data_shards.convert.test_workers import {function}\n"
        "if __name__ == '__main__':\n"
        f"    list(map_surviving({function}, [Path({str(note)!r})], workers=1))\n"
    )
    (tmp_path / "script.py").write_text(script)
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment)
    try:
        _wait_until(lambda: note.exists() and note.read_text())
        worker = Path("/proc") / note.read_text()
        assert worker.exists()
    finally:
        parent.kill()
        parent.wait()
    _wait_until(lambda: not worker.exists())


def _wait_until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came true")
