"""The locks that the processes of a run hold. The kernel's table shows which are alive."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path


def launcher_lock(run_folder: Path) -> Path:
    """Return the file that the supervisor of a run holds locked."""
    return run_folder / "launcher" / "lock"


def trainer_lock(run_folder: Path) -> Path:
    """Return the file that rank 0 of a run holds locked."""
    return run_folder / "lock"


def lock_holder(path: Path) -> int | None:
    """Return the process that holds the flock on a file of this machine, or None.

    This reads the kernel's table of locks. So it does not disturb a process that takes the lock.
    The answer is never out of date: after a kill, after a reboot, or when a process id is reused.
    """
    try:
        file = os.stat(path, follow_symlinks=False)
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in table.splitlines():
        fields = line.split()
        # '1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF'; a process that waits has '->' before
        # FLOCK.
        if len(fields) != 8 or fields[1] != "FLOCK" or fields[3] != "WRITE":
            continue
        major, minor, inode = fields[5].split(":")
        if int(inode) != file.st_ino:
            continue
        pid = int(fields[4])
        same_device = os.makedev(int(major, 16), int(minor, 16)) == file.st_dev
        if os.path.exists(f"/proc/{pid}") and (same_device or _has_open(pid, file)):
            return pid
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    # On some file systems (btrfs, overlays) stat and the table of locks show different device
    # numbers. Then the open files of the process decide.
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        try:
            facts = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode) and os.path.samestat(facts, file):
            return True
    return False


def signal_holder(path: Path, number: signal.Signals) -> None:
    """Send a signal to the process that holds the flock on a file, if there is one.

    The signal cannot reach another process that was given the same id meanwhile.
    """
    pid = lock_holder(path)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Look again: from now on the descriptor stands for one process only.
        if lock_holder(path) == pid:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
