"""Child processes: start one with a log, kill all that is left."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from data_shards.system.processes import usable_cores

PARENT = "REBIAS_PARENT_PID"
"""Environment variable with the process that a child dies with."""

# Another run's place among its ranks, as inside a batch job, does not hold for a child. PET_… are
# options of torchrun; PET_STANDALONE would have its store listen on all interfaces.
_PLACEMENT = re.compile(
    r"(SLURM_|PMI|OMPI_|PET_|TORCHELASTIC_).*|MASTER_(ADDR|PORT)|ROLE_NAME|"
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)"
)
# A batch system warns whole process groups with SIGUSR2, which would kill torchrun. The ranks
# inherit this until they set their own handler.
_SHIELD = ("/bin/sh", "-c", "trap '' USR2; exec \"$@\"", "child")


class Child(subprocess.Popen[bytes]):
    """A child process whose output is appended to a log.

    It has its own session, so a terminal's Ctrl-C and Ctrl-Z reach the parent only. Its ranks
    connect to each other over loopback.

    Args:
        command: the program and its arguments.
        log: file for the output; its folder is made if there is none.
        ranks: processes that share the cores of the calling thread.
        environment: variables of the child. This class adds its own, and leaves out those that say
            which rank a process is.
    """

    def __init__(
        self, command: Sequence[str], log: Path, ranks: int, environment: Mapping[str, str]
    ) -> None:
        threads = max(1, usable_cores() // ranks)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            super().__init__(
                [*_SHIELD, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    "OMP_NUM_THREADS": str(threads),
                    **{k: v for k, v in environment.items() if not _PLACEMENT.fullmatch(k)},
                    "GLOO_SOCKET_IFNAME": "lo",
                    "NCCL_SOCKET_IFNAME": "lo",
                    PARENT: str(os.getpid()),
                },
                start_new_session=True,
            )

    def last_output(self, most: int) -> bytes:
        """Return at most ``most`` bytes from the end of the child's output."""
        with self._log.open("rb") as log:
            log.seek(max(self._begin, self._log.stat().st_size - most))
            return log.read()


def stopped_processes(ancestor: int) -> list[int]:
    """Return the processes that a signal has stopped: the ancestor itself and any below it."""
    stopped = []
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(ancestor)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    stopped.append(process.pid)
    return stopped


def kill_all(seconds: float) -> list[int]:
    """Kill all processes below this one, and wait until they are gone.

    This finds orphans only after ``adopt_orphans``.

    Args:
        seconds: how long to wait.

    Returns:
        The processes that are still there: one that waits for a broken disk cannot be killed.
    """
    deadline = time.monotonic() + seconds
    while below := psutil.Process().children(recursive=True):
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # This also reaps them. Their own children, orphans by now, are found by the next round.
        _, left = psutil.wait_procs(below, timeout=0.1)
        if time.monotonic() > deadline:
            return [process.pid for process in left]
    return []
