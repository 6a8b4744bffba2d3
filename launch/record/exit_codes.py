"""Exit codes of single ranks, each in a file ``FOLDER/<rank>``.

torchrun returns 1 whatever its ranks return, and srun returns the highest code, which may be that
of a killed rank. So each rank writes its own code. A rank that was killed writes none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data_shards.files import write_synced
from launch.record.reading import read_tail
from rebias_dist.commands import train


def train_and_note(arguments: Sequence[str], path: Path) -> None:
    """Train, as ``python -m rebias_dist.train`` does, and write the exit code to a file."""

    def note(code: int) -> None:
        write_synced(path, f"{code}\n".encode())

    try:
        train.cli(arguments, note)
    except SystemExit as leaving:
        note(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise


def read_codes(folder: Path) -> dict[str, int]:
    """Return the exit codes in a folder by the name of their rank."""
    texts = {name: (read_tail(folder / name, 10) or b"").strip() for name in os.listdir(folder)}
    return {name: int(text) for name, text in texts.items() if text.isdigit()}
