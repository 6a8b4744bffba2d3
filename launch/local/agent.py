"""A torchrun for one machine: it dies with its parent, and listens on loopback only.

It is started as ``python -m launch.local.agent torchrun-arguments``.
"""

from __future__ import annotations

import logging
import os
import sys

from data_shards.system.processes import die_with_parent
from launch.local.children import PARENT


def main() -> int:
    """Run torchrun; return 1 if a rank failed.

    The ranks say themselves why they fail, and leave their exit codes. So only a rank that was
    killed is named here, instead of torchrun's own block about the first rank that failed.
    """
    die_with_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    if "LOGLEVEL" not in os.environ:  # torchrun's own variable
        logging.disable(logging.ERROR)

    # Importing torch takes seconds, in which this process must not outlive its parent.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    from launch.local.rendezvous import BACKEND, Loopback

    rendezvous_handler_registry.register(BACKEND, Loopback)
    # torchrun does not use the end point, but warns without one. It would write the ranks' errors
    # to a folder in /tmp, which nobody reads or removes.
    arguments = ["--nnodes=1", f"--rdzv-backend={BACKEND}", "--rdzv-endpoint=127.0.0.1"]
    arguments += ["--max-restarts=0", f"--log-dir={os.devnull}"]
    try:
        run.main([*arguments, *sys.argv[1:]])
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0:
                print(f"rank {rank} was killed by {failure.signal_name()}", file=sys.stderr)
        return 1
    except SignalException:  # it was asked to stop, and has passed that on
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
