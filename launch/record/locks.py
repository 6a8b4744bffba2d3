"""The locks that the processes of a run hold. The kernel's table shows which are alive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from data_shards.system.files import named_holder, opened_as


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
    On a file system without locks it is the process that the file names and that has it open.
    """
    try:
        file = os.stat(path, follow_symlinks=False)
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    holders = [pid for pid in (_locker(line, file) for line in table.splitlines()) if pid]
    holders += [pid for pid in [named_holder(path)] if pid]
    return next((pid for pid in holders if not _holds_another(pid, path, file)), None)


def _locker(line: str, file: os.stat_result) -> int | None:
    """Return the process that a line of the table of locks is about, if it locks this file."""
    fields = line.split()
    # '1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF'; a process that waits has '->' before
    # FLOCK.
    if len(fields) != 8 or fields[1] != "FLOCK" or fields[3] != "WRITE":
        return None
    major, minor, inode = fields[5].split(":")
    if int(inode) != file.st_ino:
        return None
    pid = int(fields[4])
    same_device = os.makedev(int(major, 16), int(minor, 16)) == file.st_dev
    # On some file systems (btrfs, overlays) stat and the table of locks show different device
    # numbers. Then the open files of the process decide.
    found = os.path.exists(f"/proc/{pid}") and (same_device or opened_as(pid, file))
    return pid if found else None


def _holds_another(pid: int, path: Path, file: os.stat_result) -> bool:
    """Return whether a process holds the file by its hard link in another folder.

    A copy of a run's folder that was made by ``cp -al`` shares the lock. A path of the process that
    does not lead to the file from here, as out of a container, decides nothing.
    """
    if file.st_nlink == 1:
        return False
    seen = [other for other in opened_as(pid, file) if _is(other, file)]
    return bool(seen) and not any(os.path.samefile(other.parent, path.parent) for other in seen)


def _is(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:
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
