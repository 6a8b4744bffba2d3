"""Shows a growing log on the terminal, without ever keeping the launcher waiting."""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import suppress
from pathlib import Path

_LOOK = 0.2  # seconds between two looks at the log
_STUCK = 2.0  # seconds without progress after which nobody seems to read what is shown
_AT_ONCE = 65536  # bytes


class Relay:
    """Copies what is appended to a log from now on to stderr.

    A thread does it, because stderr blocks while a pager is paused or a connection hangs. The
    launcher must still hear signals and watch its ranks then. The log has everything in any case.

    Args:
        log: a file; it may not exist yet.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._unwritten: list[bytes] = []  # lines for which there was no space in the log
        self._shown = log.stat().st_size if log.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Append a line to the log, and so show it."""
        text = f"{line}\n".encode()
        try:
            with self._log.open("ab") as log:
                log.write(text)
        except OSError:
            self._unwritten.append(text)

    def close(self) -> None:
        """Wait until all is shown, or nobody seems to read it."""
        self._ended.set()
        while self._thread.is_alive():
            before = self._shown
            self._thread.join(_STUCK)
            if self._shown == before:
                return

    def _copy(self) -> None:
        with suppress(OSError, ValueError, AttributeError):  # stderr may be gone
            stderr = sys.stderr.fileno()
            while True:
                is_last = self._ended.is_set()
                while text := self._next():
                    self._shown += _write(stderr, text)
                while self._unwritten:
                    _write(stderr, self._unwritten.pop(0))
                if is_last:
                    return
                self._ended.wait(_LOOK)

    def _next(self) -> bytes:
        try:
            with self._log.open("rb") as log:
                log.seek(self._shown)
                return log.read(_AT_ONCE)
        except FileNotFoundError:
            return b""


def _write(descriptor: int, text: bytes) -> int:
    while True:
        try:
            return os.write(descriptor, text)
        except BlockingIOError:  # another program has made it non-blocking
            select.select([], [descriptor], [])
