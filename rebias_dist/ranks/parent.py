"""What a process asks of Linux about its parents: to die with one, or to take the place of one."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends, however that ends.

    It holds across exec, and for a stopped process as well. Leaves at once when the parent was
    faster. Linux goes by the thread that has started this process: when that ends, it counts as
    the parent's end.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, in place of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
