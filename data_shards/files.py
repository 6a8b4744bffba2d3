"""Write files and folders that appear whole or not at all, open regular files only, lock files."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from data_shards.errors import DataShardsError

# A hash, because a host name may have any bytes.
_HOST = hashlib.sha256(os.fsencode(os.uname().nodename)).hexdigest()[:8]


def sync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then give it its name.

    Several processes may write the same file at once: the last one stays, complete. An OSError
    always names the file.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise


def regular_descriptor(path: Path) -> int:
    """Open a regular file for reading; never block.

    OSError for anything else, such as a device or a FIFO.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; DataShardsError in place of OSError."""
    try:
        return open(regular_descriptor(path), "rb")
    except OSError as error:
        raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; errors as :func:`open_regular`."""
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None


def lock(file: int | BinaryIO, *, wait: bool) -> bool:
    """Lock an open file against other processes until it is closed, however this process ends.

    Return False if another process holds it and ``wait`` is false. OSError if the file system has
    no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class HeldError(Exception):
    """Another process holds a lock; the message names it."""


def hold(path: Path, role: str) -> BinaryIO:
    """Lock the file ``path``, which is made if needed, and write there which process holds it.

    The lock lasts until the returned file is closed or this process ends. ``role`` is a word for
    what such a process is. HeldError if another process holds the lock.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
    try:
        if not lock(file, wait=False):
            holder = file.read(200).decode(errors="replace").strip()
            raise HeldError(holder or f"another {role}")
        file.truncate(0)
        file.write(f"{role} {os.getpid()} on {os.uname().nodename}".encode())
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; ``path`` is a file that is made for it."""
    with path.open("ab") as file:
        with suppress(OSError):  # a file system without locks
            lock(file, wait=True)
        yield


@contextmanager
def temporary_file(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield the path and the open file of a new temporary file in ``folder``.

    It is removed when the block ends, unless it was renamed. Its name says which machine made it,
    and it is locked while it is open, so that :func:`remove_stale` can tell it from the file of a
    process that was killed.
    """
    path, file = _create_locked(folder, name)
    try:
        with file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def _create_locked(folder: Path, name: str) -> tuple[Path, BinaryIO]:
    while True:
        path = folder / f"{name}.{_HOST}-{secrets.token_hex(8)}"
        file = path.open("w+b")
        # Without locks in the file system, stale files stay until the folder is removed.
        with suppress(OSError):
            lock(file, wait=True)
        # Another process may have removed it as stale before it was locked.
        if path.exists():
            return path, file
        file.close()


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in ``folder`` that killed processes of this machine left there.

    Files of other machines stay: on some file systems a lock is seen only on the machine that
    took it, so this one cannot know whether they are still written.
    """
    for path in folder.glob(f"*.{_HOST}-*"):
        with suppress(OSError), path.open("rb") as file:
            if lock(file, wait=False):
                path.unlink()


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield a fresh folder beside ``final`` that becomes ``final`` when the block ends well.

    If ``final`` came into being meanwhile (another process was faster), it stays and the
    fresh folder is dropped: the caller compares afterwards. An exception drops it as well;
    a kill leaves a hidden ``.<name>.*.tmp`` that nothing reads and that may be deleted.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = final.parent / f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    staged.mkdir()
    try:
        yield staged
        sync_folder(staged)
        move_folder(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def move_folder(folder: Path, final: Path) -> None:
    """Rename a folder; if ``final`` is there already, with files in it, both stay."""
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync_folder(final.parent)
