"""One rank of a sweep's cell: it dies with what has started it, and listens on loopback only.

Started as ``python -m launch.sweep.cell PARENT training-arguments``: alone by the sweep, whose
process id is PARENT; one of several by ``launch.local.agent``, with ``agent`` in its place.
"""

from __future__ import annotations

import os
import sys

from data_shards.processes import die_with_parent
from launch.local.agent import AGENT_PID
from rebias_dist.commands import train


def main() -> None:
    """Train, as ``python -m rebias_dist.train`` does."""
    parent = os.environ[AGENT_PID] if sys.argv[1] == "agent" else sys.argv[1]
    die_with_parent(int(parent))
    # The ranks' own connections.
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    train.cli(sys.argv[2:])


if __name__ == "__main__":
    main()
