"""What Linux tells of processes: who descends from whom, who is stopped, who holds a lock."""

from __future__ import annotations

import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process as /proc/<pid>/stat shows it."""

    pid: int
    parent: int
    state: str
    """R, S, D, T (stopped by a signal), Z (ended, not yet reaped) and others."""


def processes() -> dict[int, Process]:
    """Return all processes that can be seen, by their ids."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := look_up(int(entry))) is not None:
            found[process.pid] = process
    return found


def look_up(pid: int) -> Process | None:
    """Return a process by its id, None if there is no such one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode())


def descendants(ancestor: int) -> list[Process]:
    """Return the processes below another one."""
    table = processes()
    below: dict[int, list[Process]] = {}
    for process in table.values():
        below.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    todo = [ancestor]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += [child.pid for child in children]
    return found


def kill_all(seconds: float) -> list[int]:
    """Kill all that descends from this process, and wait until it is gone.

    Orphans are found only after ``adopt_orphans``.

    Args:
        seconds: how long to wait.

    Returns:
        The processes that are still there: a process that waits for a broken disk cannot be
        killed.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = []
        for process in descendants(os.getpid()):
            if process.state != "Z":
                left.append(process.pid)
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            elif process.parent == os.getpid():
                try:
                    os.waitpid(process.pid, os.WNOHANG)
                except ChildProcessError:
                    continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def lock_holder(path: Path) -> int | None:
    """Return the process that holds the flock on a file of this machine, None if nobody does.

    The kernel's own table is read, so that asking disturbs nobody and the answer cannot be
    stale: not after a kill, not after a reboot, not when process ids are used again.
    """
    try:
        file = os.stat(path, follow_symlinks=False)
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in table.splitlines():
        fields = line.split()
        # 1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF; a waiting one has '->' in between.
        if len(fields) != 8 or fields[1] != "FLOCK" or fields[3] != "WRITE":
            continue
        major, minor, inode = fields[5].split(":")
        if int(inode) != file.st_ino:
            continue
        pid = int(fields[4])
        same_device = os.makedev(int(major, 16), int(minor, 16)) == file.st_dev
        if look_up(pid) is not None and (same_device or _has_open(pid, file)):
            return pid
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    # Some file systems (btrfs, overlays) show another device number to stat than to the lock
    # table; then the process's own files decide.
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


def signal_holder(path: Path, number: signal.Signals) -> int | None:
    """Send a signal to the process that holds the flock on a file; return its id, if there is one.

    It cannot reach another process that has got the id meanwhile.
    """
    pid = lock_holder(path)
    if pid is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        # Asked again: the descriptor now stands for one process for good.
        if lock_holder(path) != pid:
            return None
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    return pid
