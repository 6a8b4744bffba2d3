"""Write files and folders that appear whole or not at all, open regular files only, lock files."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.errors import DataShardsError
from data_shards.system.file_system import lock, sync_folder

# A hash, because a host name may have any bytes.
_HOST = hashlib.sha256(os.fsencode(os.uname().nodename)).hexdigest()[:8]
_STAGED = ".tmp"
_LONGEST_NAME = 200  # bytes of the text that names a holder
_MOST_DIGITS = 300  # of a whole number, which then fits a float
SMALL = 1 << 20  # bytes of a JSON file; most have a few hundred


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put ``path`` into an OSError that names no file, or a temporary one of this name.

    The system does not say which file it could not write.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(path)):
            error.filename = str(path)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then give it its name.

    Several processes may write the same file at once: the last one stays, complete. An OSError
    always names the file.
    """
    with naming(path), temporary_file(path.parent, path.name) as (temporary, file):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)


def sha256_of(file: BinaryIO, on_block: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of the rest of a file in hexadecimal digits.

    ``on_block`` is called after each MiB.
    """
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
        on_block()
    return digest.hexdigest()


def regular_descriptor(path: Path) -> int:
    """Open a regular file for reading; never block.

    OSError for anything else, such as a device or a FIFO.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # a NUL, or a sign that the encoding of this locale's file names lacks
        raise OSError(errno.EINVAL, "no file can have this name here", str(path)) from None
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


class HeldError(Exception):
    """Another process holds a lock; the message names it."""


def parse_json(content: bytes | str) -> Any:
    """Return the value of JSON that anyone may have written; ValueError if it is damaged.

    That includes what Python's parser takes beyond JSON, and numbers that no float holds.
    """
    try:
        return json.loads(content, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:20]}… is no sensible number")
    return int(text)


def read_json(path: Path, most: int = SMALL) -> Any:
    """Return the value in a JSON file of at most ``most`` bytes.

    DataShardsError if it cannot be read, is larger, or is damaged.
    """
    with open_regular(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise DataShardsError(f"{path}: larger than {most} bytes, which nothing here writes")
    try:
        return parse_json(content)
    except ValueError as error:
        raise DataShardsError(f"{path}: damaged ({error})") from None


def hold(path: Path, role: str) -> BinaryIO:
    """Lock the file ``path``, which is made if needed, and write there which process holds it.

    The lock lasts until the returned file is closed or this process ends. ``role`` is a word for
    what such a process is. HeldError if another process holds the lock. On a file system without
    locks, only a process of this machine is noticed.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
    try:
        unprotected = f"nothing keeps a second {role} on another machine from working here"
        found = lock(file, wait=False, unprotected=unprotected)
        if found is False or (found is None and named_holder(path) not in (None, os.getpid())):
            holder = file.read(_LONGEST_NAME).decode(errors="replace").strip()
            linked = os.fstat(file.fileno()).st_nlink > 1
            where = f" (or on a folder that shares {path} by a hard link)" if linked else ""
            raise HeldError((holder or f"another {role}") + where)
        file.truncate(0)
        file.write(f"{role} {os.getpid()} on {os.uname().nodename}".encode())
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def named_holder(path: Path) -> int | None:
    """Return the process of this machine that :func:`hold` has written to a file, if it lives.

    It must have the file open, so a process that was given the same id later does not count.
    """
    try:
        with open(regular_descriptor(path), "rb") as file:
            text = file.read(_LONGEST_NAME).decode(errors="replace")
            facts = os.fstat(file.fileno())
    except OSError:
        return None
    named = re.fullmatch(r"\w+ (\d{1,9}) on (.*)", text)
    if named is None or named[2] != os.uname().nodename or not opened_as(int(named[1]), facts):
        return None
    return int(named[1])


def opened_as(process: int, facts: os.stat_result) -> list[Path]:
    """Return the paths under which a process has a file open; none if this user may not look."""
    found = []
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(descriptor.stat(), facts):
                    found.append(descriptor.readlink())
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; ``path`` is a file that is made for it."""
    with path.open("ab") as file:
        lock(file, wait=True, unprotected="two processes that publish here may disturb each other")
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
        yield path, file
    finally:
        try:
            with naming(path):
                file.close()  # this writes what is left
        finally:
            path.unlink(missing_ok=True)


def _create_locked(folder: Path, name: str) -> tuple[Path, BinaryIO]:
    while True:
        path = folder / f"{name}.{_HOST}-{secrets.token_hex(8)}"
        file = path.open("w+b")
        # Without locks in the file system, stale files stay until the folder is removed.
        lock(file, wait=True)
        # Another process may have removed it as stale before it was locked.
        if path.exists():
            return path, file
        file.close()


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left there.

    Those of other machines stay: on some file systems a lock is seen only on the machine that
    took it, so this one cannot know whether they are still written.
    """
    for path in folder.glob(f"*.{_HOST}-*"):
        with suppress(OSError), path.open("r+b") as file:
            if lock(file, wait=False):
                path.unlink()
    for path in folder.glob(f"*.{_HOST}-*{_STAGED}"):
        # The file is there as long as the process that writes to the folder lives.
        if not path.with_suffix("").exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield a fresh folder beside ``final`` that becomes ``final`` when the block ends well.

    If ``final`` came into being meanwhile (another process was faster), it stays and the
    fresh folder is dropped: the caller compares afterwards. An exception drops it as well. The
    hidden folder of a process that was killed is removed by the next call for a folder beside it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(final.parent)
    with temporary_file(final.parent, f".{final.name}") as (alive, _):
        staged = alive.with_name(f"{alive.name}{_STAGED}")
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
