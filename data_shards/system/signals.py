"""The signals that ask a program to stop; every program listens to the same ones."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, kill, the warning of a batch system ahead of its time limit, a closed terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call ``handler`` for each stop signal inside the block.

    SIGINT and SIGHUP stay ignored where they are: nohup ignores SIGHUP, and a shell ignores the
    SIGINT of its background jobs. SIGTERM and SIGUSR2 are heard in any case: programs of this
    project stop each other by SIGTERM, and start others with SIGUSR2 ignored, because it would end
    them before they listen.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; in another thread signals keep their effect.
        yield
        return
    earlier = {}
    for number in STOP_SIGNALS:
        is_own = number in (signal.SIGTERM, signal.SIGUSR2)
        if is_own or signal.getsignal(number) != signal.SIG_IGN:
            earlier[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a stop signal as Ctrl-C: raise KeyboardInterrupt, so that the program clears up."""
    raise KeyboardInterrupt
