"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

from data_shards.signals import STOP_SIGNALS

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
