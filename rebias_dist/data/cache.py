"""Shards that lie elsewhere, kept for a while in a folder of this host.

A file is named by its sha256, so it serves every split and every run that needs it. It appears
whole: it is written as ``.part``, compared with its sha256, synced and renamed. A process that
writes it holds an exclusive lock on it, and one that needs it a shared lock. So the processes of a
host fetch it once, and none removes what another one needs. A lock ends with its process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataShardsError
from data_shards.format.manifest import (
    ATTRIBUTES_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    Shard,
    parse_manifest,
)
from data_shards.system.file_system import lock
from data_shards.system.files import staged_folder, temporary_file
from rebias_dist.data.embedded import cache_folder
from rebias_dist.data.remote import StoppedError, Store
from rebias_dist.errors import ConfigError, DataError

GB = 10**9
_LOOK = 0.1  # seconds between two looks at a lock that another process holds
MOST_MANIFEST = 2**28  # bytes
_MOST_ROW = 2**13  # bytes of a row of the index

_log = logging.getLogger("rebias_dist")


class Cache:
    """The fetched shards of a host.

    Args:
        limit: bytes that they may take together. Those in use are kept whatever they take.

    Raises:
        ConfigError: the folder cannot be made, or its file system has no locks.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.folder = cache_folder() / "fetched"
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("ab") as file:
                served = lock(file, wait=True, shared=True)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be written ({error.strerror}); "
                "set REBIAS_CACHE to a writable folder with enough space"
            ) from None
        if served is None:
            raise ConfigError(
                f"{self.folder}: the file system has no locks, without which shards cannot be "
                "fetched; set REBIAS_CACHE to a folder on a disk of this host"
            )

    def hold(self, shard: Shard) -> int | None:
        """Return a descriptor of a shard that is here; it stays until :meth:`let_go`, or None."""
        path = self._path(shard)
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            lock(descriptor, wait=True, shared=True)  # others lock it exclusively for an instant
            if _is(path, descriptor):
                if os.fstat(descriptor).st_size == shard.bytes:
                    with suppress(PermissionError):  # another user's, in a cache that is shared
                        os.utime(descriptor)
                    return descriptor
                path.unlink(missing_ok=True)  # a crash of the machine has cut it
            self.let_go(descriptor)

    @staticmethod
    def let_go(descriptor: int) -> None:
        """Close a descriptor, and let others remove its file."""
        # Closing is not enough: a worker that was forked meanwhile has the same lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def get(self, shard: Shard, store: Store, stopped: threading.Event) -> int:
        """Return a descriptor as :meth:`hold`, after fetching the shard if it is not here.

        Raises StoppedError if ``stopped`` is set, and the errors of :meth:`Store.fetch`.
        """
        part = self._path(shard).with_suffix(".part")
        while True:
            held = self.hold(shard)
            if held is not None:
                return held
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                if lock(descriptor, wait=False) and _is(part, descriptor):
                    self._fill(part, shard, store, stopped)
                    continue
            finally:
                self.let_go(descriptor)
            if stopped.wait(_LOOK):
                raise StoppedError

    def _fill(self, part: Path, shard: Shard, store: Store, stopped: threading.Event) -> None:
        try:
            self._make_room(shard.bytes)
            size = shard.bytes
            store.fetch(shard.name, part, stopped, most=size, size=size, sha256=shard.sha256)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            self._make_room(0)
            part.rename(self._path(shard))
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, needed: int) -> None:
        """Remove the files that were used least recently, until ``needed`` bytes fit."""
        found = []
        for path in (*self.folder.glob("*.tar"), *self.folder.glob("*.part")):
            with suppress(FileNotFoundError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found) + needed
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if lock(descriptor, wait=False) and _is(path, descriptor):
                        path.unlink()
                        total -= size
                finally:
                    self.let_go(descriptor)
        if total > self.limit and not self._warned:
            self._warned = True
            _log.warning(
                "%s: the shards in use take %.1f GB, more than data.cache_gb %.1f",
                self.folder, total / GB, self.limit / GB,
            )  # fmt: skip

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def split(self, store: Store, stopped: threading.Event) -> Path:
        """Return a local folder with the manifest and the index of the split at an address.

        The manifest is fetched each time, and the rest if this host does not have it yet. Errors
        as :meth:`get`; also DataError if the manifest is malformed.
        """
        splits = self.folder / "splits"
        splits.mkdir(exist_ok=True)
        with _alone(splits / "lock", stopped), temporary_file(splits, "manifest") as (path, _):
            store.fetch(MANIFEST_NAME, path, stopped, most=MOST_MANIFEST)
            content = path.read_bytes()
            try:
                manifest, as_written = parse_manifest(path)
            except DataShardsError as error:
                text = str(error).replace(str(path), f"{store.address}/{MANIFEST_NAME}")
                raise DataError(text) from None
            if not as_written:
                raise DataError(
                    f"{store.address}/{MANIFEST_NAME}: altered since it was written (its digest "
                    "differs)"
                )
            folder = splits / hashlib.sha256(content).hexdigest()[:32]
            if not folder.is_dir():
                with staged_folder(folder) as staged:
                    (staged / MANIFEST_NAME).write_bytes(content)
                    most = _MOST_ROW * (manifest.samples + 1)
                    sealed = {INDEX_NAME: manifest.index_sha256}
                    if manifest.attributes:
                        sealed[ATTRIBUTES_NAME] = manifest.files[ATTRIBUTES_NAME]
                    for name, sha256 in sealed.items():
                        store.fetch(name, staged / name, stopped, most=most, sha256=sha256)
            return folder


def _is(path: Path, descriptor: int) -> bool:
    """Return whether a path is still that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def _alone(path: Path, stopped: threading.Event) -> Iterator[None]:
    """Hold a lock that other processes wait for; StoppedError if ``stopped`` is set meanwhile."""
    with path.open("ab") as file:
        while not lock(file, wait=False):
            if stopped.wait(_LOOK):
                raise StoppedError
        yield
