"""One rank under the supervisor: it dies with torchrun, and its exit code is written down.

Started by torchrun as ``python -m launch.local.rank FOLDER training-arguments``. torchrun returns 1
whatever its ranks return. So each rank leaves its code in ``FOLDER/<rank>``; a rank that was
killed leaves none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.files import write_synced
from data_shards.processes import die_with_parent
from launch.local.agent import AGENT_PID
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


def main() -> None:
    """Train, bound to torchrun."""
    die_with_parent(int(os.environ[AGENT_PID]))
    train_and_note(sys.argv[2:], Path(sys.argv[1]) / os.environ["RANK"])


if __name__ == "__main__":
    main()
