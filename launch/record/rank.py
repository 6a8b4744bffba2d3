"""One rank of a job: it writes its exit code to a file, for the verdict on the job.

A batch script or a pod starts it as ``python -m launch.record.rank FOLDER training-arguments``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.record.exit_codes import train_and_note
from rebias_dist.errors import ConfigError
from rebias_dist.ranks.placement import resolve_placement


def main() -> None:
    """Train, in the place that the environment gives."""
    folder = Path(sys.argv[1])
    try:
        rank = str(resolve_placement().rank)
    except ConfigError:
        rank = "unplaced"  # the trainer prints the reason
    train_and_note(sys.argv[2:], folder / rank)


if __name__ == "__main__":
    main()
