"""Worker processes that do not outlive the one that started them."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Called in a worker: let it end when its parent does, even by kill -9.

    An interrupt from the terminal is left to the parent, which ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
