"""One rank of a batch job: its exit code is written down for the verdict at the end of the job.

Started by the batch script as ``python -m launch.slurm_rank FOLDER training-arguments``. torchrun
returns 1 whatever its ranks return, and srun the highest code, that of a killed rank among them.
So each rank leaves its own in ``FOLDER/<rank>``; a rank that was killed leaves none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_shards.files import write_synced
from rebias_dist import train
from rebias_dist.errors import ConfigError
from rebias_dist.runtime.placement import resolve_placement


def main() -> None:
    """Train, as ``python -m rebias_dist.train`` does."""
    folder = Path(sys.argv[1])
    try:
        rank = str(resolve_placement().rank)
    except ConfigError:
        rank = "unplaced"  # the trainer says why

    def note(code: int) -> None:
        write_synced(folder / rank, f"{code}\n".encode())

    try:
        train.cli(sys.argv[2:], note)
    except SystemExit as leaving:
        note(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise


if __name__ == "__main__":
    main()
