"""Safe reading of files that runs leave: they may be damaged, half written or no files at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.system.files import SMALL, parse_json


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else.

    This never blocks on a FIFO or a device, and follows no symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_tail(path: Path, most: int) -> bytes | None:
    """Return the last ``most`` bytes of a regular file, or None if it cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read(most)
    except OSError:
        return None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or damaged."""
    try:
        return parse_json(read_tail(path, SMALL) or b"")
    except ValueError:
        return None


def read_state(run_folder: Path) -> dict[str, Any]:
    """Return what a run last said about itself; empty if it said nothing that can be read."""
    state = read_json(run_folder / "state.json")
    return state if isinstance(state, dict) else {}


def printable(text: bytes) -> str:
    """Return text without control characters, which a terminal obeys; newlines and tabs stay."""
    decoded = text.decode("utf-8", errors="replace")
    return "".join(sign for sign in decoded if sign.isprintable() or sign in "\n\t")
