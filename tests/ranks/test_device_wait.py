"""A rank that waits for a GPU notices a lost peer and a request to stop."""

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rebias_dist.errors import RankError
from rebias_dist.ranks import device_wait
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.device_wait import Watch, attentive, to_host, wait_for
from rebias_dist.ranks.faults import Whereabouts
from rebias_dist.ranks.signals import stop_requests

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed"])


class Never:
    """As the event of a GPU that waits for a dead peer."""

    def query(self) -> bool:
        return False


class After:
    """Happens at the given question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0


def _rank(rank: int, world: int, folder: str, seconds: float) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world
    )
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    consensus, where = Consensus(None, group), Whereabouts(rank, step=4)
    where.meet(consensus)
    with attentive(consensus, lambda: False):
        device_wait._watch.wait(After(3))
        Path(folder, f"waits-{rank}").touch()
        try:
            device_wait._watch.wait(Never())
        except Exception as error:
            Path(folder, f"said-{rank}.part").write_text(str(where.fault(error)))
            Path(folder, f"said-{rank}.part").rename(Path(folder, f"said-{rank}"))
    os._exit(1)  # as the program ends then


@pytest.mark.parametrize(
    ("fatal", "seconds", "how"),
    [(signal.SIGKILL, 600.0, "has ended"), (signal.SIGSTOP, 4.0, "is stopped")],
)
def test_survivors_leave_when_a_rank_is_lost(tmp_path, fatal, seconds, how):
    """Also those that are no neighbours of the lost rank."""
    world = 4
    ranks = [
        _context.Process(target=_rank, args=(r, world, str(tmp_path), seconds), daemon=True)
        for r in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        while len(list(tmp_path.glob("waits-*"))) < world:
            assert all(process.is_alive() for process in ranks)
            time.sleep(0.05)
        os.kill(ranks[1].pid, fatal)
        for rank in (0, 2, 3):
            ranks[rank].join(300)
            assert ranks[rank].exitcode == 1
    finally:
        for process in ranks:
            process.kill()
            process.join()
    for rank in (0, 2, 3):
        text = (tmp_path / f"said-{rank}").read_text()
        assert text.startswith(f"rank {rank}, step 4: another rank is lost: ")
        assert f"rank 1 (process {ranks[1].pid}) {how}" in text


def _leaving_together(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2
    )
    before = threading.active_count()
    with attentive(Consensus(None, dist.new_group(backend="gloo")), lambda: False):
        beating = threading.active_count() - before
    assert (beating, threading.active_count() - before) == (1, 0)
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_that_end_well_leave_no_thread(tmp_path):
    ranks = [
        _context.Process(target=_leaving_together, args=(r, str(tmp_path)), daemon=True)
        for r in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0


def test_a_request_to_stop_is_heard_and_the_step_gets_time_to_end():
    with stop_requests() as stop:
        watch = Watch(lambda: bool(stop), grace=0.2)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(TimeoutError, match="asked to stop, but the GPU has not finished"):
            watch.wait(Never())
        assert stop.signal == signal.SIGTERM
        Watch(lambda: bool(stop), grace=1000).wait(After(20))


def test_alone_a_step_ends_however_long_it_takes():
    with attentive(Consensus(), lambda: True):
        device_wait._watch._grace = 0
        device_wait._watch.wait(After(20))


def test_the_fault_of_a_gpu_that_does_not_finish_is_one_line(capsys):
    with pytest.raises(TimeoutError) as raised:
        Watch(lambda: True, grace=0).wait(Never())
    fault = Whereabouts(2, step=9).fault(raised.value)
    assert isinstance(fault, RankError)
    assert str(fault).startswith("rank 2, step 9: TimeoutError: asked to stop")
    assert "another rank may hang" in capsys.readouterr().err


def test_values_of_a_cpu_are_there_already():
    values = torch.arange(3)
    assert to_host(values) is values
    wait_for(values.device)
