"""One rank of a sweep's cell: it dies with the process that started it.

The parent is the sweep if the cell has one rank, otherwise ``launch.local.agent``.
"""

from __future__ import annotations

import os
import sys

from data_shards.system.processes import die_with_parent
from launch.local.children import PARENT
from rebias_dist.commands import train


def main() -> None:
    """Train, as ``python -m rebias_dist.train`` does."""
    die_with_parent(int(os.environ[PARENT]))
    train.cli(sys.argv[1:])


if __name__ == "__main__":
    main()
