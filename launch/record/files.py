"""Reading what runs leave behind: files that may be damaged, half written or not files at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 20  # of a JSON file; ours have a few hundred


def read_tail(path: Path, most: int) -> bytes | None:
    """Return the last ``most`` bytes of a regular file, or None if there is none to be read.

    Nothing that could block is opened: no FIFO, no device; and no symbolic link is followed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return None
        try:
            file.seek(max(0, facts.st_size - most))
            return file.read(most)
        except OSError:
            return None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if it is missing or damaged."""
    content = read_tail(path, _MOST_BYTES)
    try:
        values = json.loads(content) if content is not None else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
