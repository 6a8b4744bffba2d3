"""Signals that ask a run to stop: it saves its state and leaves at the end of its step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data_shards.system.signals import on_stop_signals


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            # A second Ctrl-C ends the run at once.
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for stop signals inside the block; restore the earlier handlers afterwards."""
    request = StopRequest()
    with on_stop_signals(request._receive):
        yield request
