"""A torchrun for one machine: it dies with its parent, and listens on loopback only.

It is started as ``python -m launch.local.agent torchrun-arguments``.
"""

from __future__ import annotations

import os
import sys

from data_shards.processes import die_with_parent
from launch.local.children import PARENT


def main() -> None:
    """Run torchrun."""
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())

    # Importing torch takes seconds, in which this process must not outlive its parent.
    from torch.distributed import run
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    from launch.local.rendezvous import BACKEND, Loopback

    rendezvous_handler_registry.register(BACKEND, Loopback)
    # torchrun does not use the end point, but warns without one.
    rendezvous = [f"--rdzv-backend={BACKEND}", "--rdzv-endpoint=127.0.0.1"]
    run.main(["--nnodes=1", *rendezvous, "--max-restarts=0", *sys.argv[1:]])


if __name__ == "__main__":
    main()
