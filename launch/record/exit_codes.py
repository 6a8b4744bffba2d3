"""Exit codes of single ranks, each in a file ``FOLDER/<rank>``.

torchrun always returns 1 when a rank fails, and srun returns the highest code, which may be that of
a killed rank. So each rank writes its own code. A rank that was killed writes none.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from data_shards.system.files import write_synced
from launch.record.reading import read_tail
from rebias_dist.commands import train
from rebias_dist.errors import EXIT_FINISHED, EXIT_GIVE_UP, EXIT_USAGE


def train_and_note(arguments: Sequence[str], path: Path) -> None:
    """Train, as ``python -m rebias_dist.train`` does, and write the exit code to a file."""

    def note(code: int) -> None:
        with suppress(OSError):  # a full disk: the rank's own error must still be shown
            write_synced(path, f"{code}\n".encode())

    try:
        train.cli(arguments, note)
    except SystemExit as leaving:
        note(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise


def read_codes(folder: Path) -> dict[str, int]:
    """Return the exit codes in a folder by the name of their rank."""
    # A rank that is killed while it writes leaves a temporary file.
    names = [name for name in os.listdir(folder) if "." not in name]
    texts = {name: (read_tail(folder / name, 10) or b"").strip() for name in names}
    return {name: int(text) for name, text in texts.items() if text.isdigit()}


def final_code(codes: Collection[int], launcher: int) -> int | None:
    """Return the exit code of a run that no restart could help, or None.

    Args:
        codes: exit codes of the ranks that were not killed.
        launcher: exit code of torchrun or srun.
    """
    for final in (EXIT_USAGE, EXIT_GIVE_UP):
        if final in codes:
            return final
    return EXIT_FINISHED if launcher == EXIT_FINISHED else None
