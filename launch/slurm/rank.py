"""One rank of a batch job: its exit code is written down for the verdict at the end of the job.

Started by the batch script as ``python -m launch.slurm.rank FOLDER training-arguments``. torchrun
returns 1 whatever its ranks return, and srun the highest code, that of a killed rank among them.
So each rank leaves its own in ``FOLDER/<rank>``; a rank that was killed leaves none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.local.rank import train_and_note
from rebias_dist.errors import ConfigError
from rebias_dist.ranks.placement import resolve_placement


def main() -> None:
    """Train, in the place that the environment gives."""
    folder = Path(sys.argv[1])
    try:
        rank = str(resolve_placement().rank)
    except ConfigError:
        rank = "unplaced"  # the trainer says why
    train_and_note(sys.argv[2:], folder / rank)


if __name__ == "__main__":
    main()
