"""Fetch one file from S3, Google Cloud Storage or a web server, and say what went wrong."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.callbacks import Callback  # type: ignore[import-untyped]

from data_shards.system.files import sha256_of
from rebias_dist.errors import ConfigError, DataError, RebiasError

ATTEMPTS = 4
"""Requests for a file before the run stops."""

_PAUSE = 0.5  # seconds before the second attempt; doubles each time
_CONNECT, _READ = 10, 30  # seconds to connect, and without a byte
_AGAIN = (400, 408, 425, 429)  # and 5xx; aiohttp gives a malformed answer the status 400
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
    "set FSSPEC_S3_ANON=true",
    "gs": "run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS",
    "http": "a web server must give the files to everyone",
}


class MissingFileError(DataError):
    """There is no such file at an address."""


class StoppedError(Exception):
    """The fetch was given up because nobody waits for it any more."""


class _AttemptError(Exception):
    """One attempt failed; ``again``: another one may help."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


class _Counter(Callback):  # type: ignore[misc]
    """Counts the bytes that arrive, and ends a fetch that nobody waits for or that is too long."""

    def __init__(self, most: int, stopped: threading.Event) -> None:
        super().__init__()
        self._most, self._stopped = most, stopped
        self.bytes = 0

    def relative_update(self, inc: int = 1) -> None:
        self.bytes += inc
        if self._stopped.is_set():
            raise StoppedError
        if self.bytes > self._most:
            raise _AttemptError(f"has more than the {self._most:,} bytes it may have", again=False)


class Store:
    """Fetches files below an address; may be used by several threads, and after a fork.

    Args:
        address: ``s3://…``, ``gs://…``, ``https://…`` or ``http://…``, without a slash at its end.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._scheme = address.partition("://")[0]
        self._made: tuple[int, Any] | None = None

    def fetch(
        self,
        name: str,
        path: Path,
        stopped: threading.Event,
        *,
        most: int,
        size: int | None = None,
        sha256: str | None = None,
    ) -> None:
        """Write a file to ``path``, after as many attempts as it takes, but at most ATTEMPTS.

        Args:
            name: of the file below the address.
            path: where it is written; an incomplete file may stay there after an error.
            stopped: set if nobody waits any more.
            most: bytes that it may have.
            size: bytes that it must have, if they are known.
            sha256: that it must have, if it is known.

        Raises:
            StoppedError: ``stopped`` was set.
            ConfigError: a package or a permission is missing.
            MissingFileError: there is no such file.
            DataError: the file is not the one that the manifest describes.
            RebiasError: the server does not answer, or not as it should.
        """
        address = f"{self.address}/{name}"
        for attempt in range(1, ATTEMPTS + 1):
            if stopped.is_set():
                raise StoppedError
            counter = _Counter(most if size is None else size, stopped)
            try:
                try:
                    self._files().get_file(address, str(path), callback=counter)
                except Exception as error:  # each of the packages has errors of its own
                    raise self._fault(error, address, path) from error
                self._check(path, size, sha256)
                return
            except _AttemptError as fault:
                if not fault.again:
                    raise DataError(f"{address}: {fault}") from None
                if attempt == ATTEMPTS:
                    raise RebiasError(
                        f"{address}: {fault}, {ATTEMPTS} times; the run can be continued when "
                        "the server is well again"
                    ) from None
            stopped.wait(_PAUSE * 2 ** (attempt - 1))

    def _files(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            try:
                files = fsspec.filesystem(
                    self._scheme, skip_instance_cache=True, **_options(self._scheme)
                )
            except ImportError as error:
                extra = {"s3": "s3", "gs": "gcs"}.get(self._scheme, "http")
                raise ConfigError(
                    f"{self.address}: a package is missing ({' '.join(str(error).split())}); "
                    f"pip install 'rebias-dist[{extra}]'"
                ) from None
            self._made = os.getpid(), files
        return self._made[1]

    def _fault(self, error: Exception, address: str, path: Path) -> Exception:
        """Return what an error of fsspec or of a package below it means."""
        if isinstance(error, (_AttemptError, StoppedError, RebiasError)):
            return error
        name = type(error).__name__
        status = getattr(error, "status", 0) or 0
        cure = _CREDENTIALS.get(self._scheme, _CREDENTIALS["http"])
        if isinstance(error, FileNotFoundError):
            return MissingFileError(f"{address}: there is no such file (404); check the address")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RebiasError(
                f"{path.parent}: no space for a shard ({error.strerror}); lower data.cache_gb, or "
                "set REBIAS_CACHE to a folder with more space"
            )
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in name:
            said = " ".join(str(error).split())[:100]
            return ConfigError(f"{self.address}: access is denied ({said or name}); {cure}")
        if isinstance(error, TimeoutError) or "Timeout" in name:
            return _AttemptError(f"no answer for {_READ} s", again=True)
        if "Payload" in name or "IncompleteRead" in name:
            return _AttemptError("the server ends early", again=True)
        again = not 400 <= status < 500 or status in _AGAIN
        return _AttemptError(f"{' '.join(str(error).split())[:120] or name}", again=again)

    def _check(self, path: Path, size: int | None, sha256: str | None) -> None:
        found = path.stat().st_size
        if size is not None and found != size:
            raise _AttemptError(f"the server ends after {found:,} of {size:,} bytes", again=True)
        if sha256 is not None:
            with path.open("rb") as file:
                digest = sha256_of(file)
            if digest != sha256:
                raise _AttemptError(
                    f"is not the file that its manifest describes: its sha256 is {digest}, not "
                    f"{sha256}; restore it, or make the shards again",
                    again=False,
                )


def _options(scheme: str) -> Mapping[str, Any]:
    """Return what bounds a request of a scheme; this module's own attempts are the only ones."""
    if scheme == "s3":
        waits = {"connect_timeout": _CONNECT, "read_timeout": _READ}
        return {"config_kwargs": {**waits, "retries": {"max_attempts": 1}}}
    if scheme == "gs":
        return {"requests_timeout": _READ}
    import aiohttp  # an optional package, which fsspec needs for web servers

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_READ)
    return {
        "client_kwargs": {"timeout": timeout, "trust_env": True},
        # A file that is compressed on the way would have another length. A connection that is used
        # again may still have the rest of the answer before.
        "headers": {"Accept-Encoding": "identity", "Connection": "close"},
    }
