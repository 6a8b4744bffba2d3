"""Processes that do not outlive the one that started them, and the cores that they may use."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
from pathlib import Path, PurePosixPath

from data_shards.system.signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends, however that ends.

    This holds across exec, for a stopped process, and inside a decoder that never returns. If the
    parent has ended already, this process ends at once. Linux watches the thread that started
    this process, not all of the parent: start such processes from a thread that lasts, best the
    main thread.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, in place of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def ignore_stop_signals() -> None:
    """Ignore the signals that ask a program to stop, except SIGTERM."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Called in a worker that ``multiprocessing`` started: let it end when its parent does.

    Terminals and batch systems signal whole process groups. The parent hears that as well, and
    ends its workers, some of them by SIGTERM.
    """
    ignore_stop_signals()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)


def usable_cores(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the number of cores that this thread may use, 1 or more.

    These are the cores that it may run on, or less: a container, a pod or a batch job may have a
    quota of processor time instead. More threads than that only take each other's time.

    Args:
        groups: the kernel's list of this process's control groups.
        mounted: folder of the control groups.
    """
    cores: float = len(os.sched_getaffinity(0))
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            top = mounted / "cpu" if controllers else mounted
            inside = PurePosixPath(group.lstrip("/"))
            # The quotas of all groups around it count. In a container only the last of these
            # folders may exist.
            for place in (inside, *inside.parents):
                cores = min(cores, _quota(top / place))
    return max(1, int(cores))


def _quota(group: Path) -> float:
    """Return the cores whose time a control group may use, by version 2 or 1 of the interface."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # there is none; "max" is no number
        return math.inf
