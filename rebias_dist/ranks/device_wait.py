"""Waiting for a GPU without becoming deaf: to the loss of a peer, and to a signal to stop.

If a peer dies inside a collective of NCCL, the GPU never finishes it. A host that waits for the GPU
inside CUDA then runs no signal handler and hears nothing of the others until it is killed. So all
waits of a training step go through here: they ask again and again whether the work is done, and
look around in between. A thread on each rank exchanges a sign of life with the others every second,
through gloo, which notices at once that a process has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.errors import RebiasError
from rebias_dist.ranks.consensus import Consensus

_BEAT = 1.0  # seconds between two signs of life
_FAREWELL = 20.0  # seconds for the other ranks to leave as well
_FIRST_PAUSE, _LONGEST_PAUSE = 2e-5, 1e-3  # seconds between two questions to the device
# Seconds that a step gets to end after a signal to stop, so that the run can be saved. torchrun and
# SLURM kill a process 30 seconds after the signal.
_GRACE = 15.0


class Ready(Protocol):
    """What is waited for, such as ``torch.cuda.Event()``."""

    def query(self) -> bool:
        """Return whether it has happened."""


class Peers:
    """Knows whether all other ranks are alive; making it is a collective.

    Args:
        group: a gloo group of all ranks that nothing else uses. Its time-out is how long a rank
            may be silent.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.lost: Exception | None = None
        """The error of the connection, once a rank has ended or is silent for too long."""
        self._group = group
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        try:
            while True:
                stays = torch.tensor([not self._leaving.is_set()], dtype=torch.int32)
                dist.all_reduce(stays, dist.ReduceOp.MAX, group=self._group)
                if not stays[0]:
                    return
                self._leaving.wait(_BEAT)
        except Exception as error:
            self.lost = error

    def leave(self) -> None:
        """Stop to exchange signs of life, together with all other ranks; a collective."""
        self._leaving.set()
        self._thread.join(_FAREWELL)


class Watch:
    """Waits for a device, and looks around meanwhile.

    Args:
        stop: whether this process was asked to stop.
        peers: the other ranks; None: there are none, or they are not watched.
        grace: seconds that the device gets to finish after a request to stop.
    """

    def __init__(
        self,
        stop: Callable[[], bool] = lambda: False,
        peers: Peers | None = None,
        grace: float = _GRACE,
    ) -> None:
        self._stop, self._peers, self._grace = stop, peers, grace

    def wait(self, ready: Ready) -> None:
        """Wait until ``ready`` has happened.

        Raises:
            RuntimeError: another rank is lost; as gloo raised it.
            TimeoutError: this process was asked to stop, and the device does not finish.
        """
        pause, asked = _FIRST_PAUSE, 0.0
        while not ready.query():
            if self._peers is not None and self._peers.lost is not None:
                raise self._peers.lost
            if self._stop():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > self._grace:
                    raise TimeoutError(
                        f"asked to stop, but the GPU has not finished its step for "
                        f"{self._grace:g} s; another rank may hang"
                    )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


_watch = Watch()


@contextmanager
def attentive(consensus: Consensus, stop: Callable[[], bool]) -> Iterator[None]:
    """Let the waits inside the block notice a lost rank and a request to stop; a collective.

    Args:
        consensus: the ranks; they are watched if it has a group for signs of life.
        stop: whether this process was asked to stop; it bounds the waits only beside other ranks.
    """
    global _watch
    group = consensus.signs_of_life
    peers = None if group is None else Peers(group)
    # Without peers the GPU finishes for certain, so a long step is waited for and then saved.
    before, _watch = _watch, Watch() if peers is None else Watch(stop, peers)
    try:
        yield
    except RebiasError:  # alike on all ranks; after any other exception the others may not leave
        if peers is not None:
            peers.leave()
        raise
    else:
        if peers is not None:
            peers.leave()
    finally:
        _watch = before


class HostCopy:
    """A copy of values in the memory of the host, which their device makes when it comes to it.

    Args:
        values: on any device; those of the host are not copied.
    """

    def __init__(self, values: Tensor) -> None:
        self._copy, self._done = values, None
        if values.device.type == "cuda":
            self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._copy.copy_(values, non_blocking=True)
            self._done = _mark(values.device)

    def wait(self) -> Tensor:
        """Return the copy, once the device has computed the values."""
        if self._done is not None:
            _watch.wait(self._done)
        return self._copy


def to_host(values: Tensor) -> Tensor:
    """Return values in the memory of the host, once their device has computed them."""
    return HostCopy(values).wait()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all work that is queued on its current stream."""
    if device.type == "cuda":
        _watch.wait(_mark(device))


def _mark(device: torch.device) -> torch.cuda.Event:
    """Return an event behind all work that is queued on the current stream of a device."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
