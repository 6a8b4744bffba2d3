"""File systems that lack services: patches in the processes that a test starts, or in its own.

The product knows nothing of them. :func:`lesser` writes a ``sitecustomize.py`` that installs them.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path

from tests import ROOT

_SITE = "from tests.faults.lesser import install\ninstall()\n"


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def install() -> None:
    """Let this process find no locks, no syncing of folders, no advice on the cache, no maps."""
    sync, true_map = os.fsync, mmap.mmap

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _refuse(errno.EINVAL)
        sync(descriptor)

    class Map(true_map):
        def __new__(cls, *arguments, **keywords):
            if keywords.get("access") == mmap.ACCESS_READ:
                _refuse(errno.ENODEV)
            return true_map.__new__(cls, *arguments, **keywords)

    os.fsync, mmap.mmap = fsync, Map
    fcntl.flock = lambda file, operation: _refuse(errno.ENOLCK)
    os.posix_fadvise = lambda *arguments: _refuse(errno.ENOSYS)


def lesser(folder: Path) -> dict[str, str]:
    """Return the environment of processes on such a file system; ``folder`` is for a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}
