"""Services that some file systems lack: locks, syncing a folder, forgetting pages, mapping a file.

NFS without locks, CIFS and FUSE answer such a call with ENOLCK, ENOSYS, EINVAL, EOPNOTSUPP or
ENODEV. The functions here then go on without the service. They say once what is lost by that.
"""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_LACKING = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV)

# Without a handler for it, logging prints the bare message to stderr.
_log = logging.getLogger(__name__)
_said: set[str] = set()


def _serves(call: Callable[[], object], path: Path | str, lost: str) -> bool:
    """Call a service of the file system; return False, and say what is lost, if it has none."""
    try:
        call()
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        if lost and lost not in _said:
            _said.add(lost)
            _log.warning("warning: %s: %s (%s)", path, lost, error.strerror)
        return False
    return True


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def lock(
    file: int | BinaryIO, *, wait: bool, unprotected: str = "", shared: bool = False
) -> bool | None:
    """Lock an open file against other processes until it is closed, however this process ends.

    Args:
        file: open for writing, because NFS locks no other.
        wait: wait for a process that holds the lock.
        unprotected: what may happen without locks; nothing is said if it is empty.
        shared: others may hold it too if theirs are shared; a lock held already becomes shared.

    Returns:
        False if another process holds it and ``wait`` is false; None if the file system has no
        locks.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    lost = f"the file system has no locks, so {unprotected}" if unprotected else ""
    try:
        served = _serves(lambda: fcntl.flock(descriptor, flags), _path_of(descriptor), lost)
    except BlockingIOError:
        return False
    return True if served else None


def sync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` survive a power cut, if the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    lost = "the file system syncs no folders, so a power cut may undo what was written last"
    try:
        _serves(lambda: os.fsync(descriptor), folder, lost)
    finally:
        os.close(descriptor)


def forget_pages(descriptor: int, begin: int, length: int) -> None:
    """Drop synced pages of a file from the cache, so that it is read from the disk again."""

    def advise() -> None:
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_WILLNEED)

    lost = "what is read back may come from the cache, so a fault of the disk may go unnoticed"
    _serves(advise, _path_of(descriptor), lost)


def mapped(file: BinaryIO) -> mmap.mmap | None:
    """Return a read-only map of a file that is not empty; None if the file system has none."""
    found: list[mmap.mmap] = []
    lost = "the file system maps no files, so each process holds its own copy of an index"
    _serves(
        lambda: found.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)),
        _path_of(file.fileno()),
        lost,
    )
    return found[0] if found else None


def try_out(folder: Path) -> None:
    """Say for all workers, which are silent, what the file system of ``folder`` lacks."""
    sync_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        forget_pages(descriptor, 0, 0)
    finally:
        os.close(descriptor)
