"""Folders that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield a fresh folder beside ``final`` that becomes ``final`` when the block ends well.

    If ``final`` came into being meanwhile (another process was faster), it stays and the
    fresh folder is dropped: the caller compares afterwards. An exception drops it as well;
    a kill leaves a hidden ``.<name>.*.tmp`` that nothing reads and that may be deleted.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = final.parent / f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    staged.mkdir()
    try:
        yield staged
        sync_folder(staged)
        try:
            staged.rename(final)
        except OSError:
            if not final.is_dir():
                raise
        sync_folder(final.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
