"""The one place where the code depends on the version of torch, which may be 2.9 or newer.

2.9 is the first version with ``fp32_precision`` for each kind of operation
(``objectives/full_precision.py``). Older ones have only settings for the whole process.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters

BUFFERS_STAY: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
"""Arguments of DistributedDataParallel with which a forward pass leaves the buffers alone."""


def set_timeout(patience: timedelta, group: dist.ProcessGroup | None) -> None:
    """Set how long operations of a group may take from now on; None is the group of all ranks."""
    # Newer versions deprecate the older name.
    name = "set_timeout" if hasattr(dist, "set_timeout") else "_set_pg_timeout"
    getattr(dist.distributed_c10d, name)(patience, group)


@contextmanager
def gloo_on_stderr() -> Iterator[None]:
    """Send what gloo of torch 2.9 says of its connections to standard error.

    It writes to descriptor 1, where the JSON of a command would no longer be JSON.
    """
    try:
        kept = os.dup(1)
    except OSError:  # the stream is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
