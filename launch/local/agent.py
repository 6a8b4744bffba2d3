"""One torchrun on this machine alone: it dies with the launcher, and listens on loopback only.

Started by the supervisor as ``python -m launch.local.agent LAUNCHER_PID torchrun-arguments``.
torchrun's own rendezvous listen on all interfaces without any authentication. This one listens
on 127.0.0.1, on a port that the kernel chose, so two runs at a time cannot collide either.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from data_shards.processes import die_with_parent

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

BACKEND = "rebias-loopback"
AGENT_PID = "REBIAS_AGENT_PID"


def _handler(parameters: RendezvousParameters) -> RendezvousHandler:
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic import rendezvous

    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(minutes=10),
        wait_for_workers=False,
        # The store closes it.
        master_listen_fd=listener.detach(),
    )

    class Loopback(rendezvous.RendezvousHandler):
        """A rendezvous of a single node, which has nobody to wait for."""

        # The ranks are clients of this store instead of opening one of their own.
        use_agent_store = True

        def get_backend(self) -> str:
            return BACKEND

        def next_rendezvous(self) -> rendezvous.RendezvousInfo:
            where = rendezvous.RendezvousStoreInfo(host, port)
            return rendezvous.RendezvousInfo(PrefixStore(self.get_run_id(), store), 0, 1, where)

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return parameters.run_id

        def shutdown(self) -> bool:
            return True

    return Loopback()


def main() -> None:
    """Run torchrun."""
    die_with_parent(int(sys.argv[1]))
    os.environ[AGENT_PID] = str(os.getpid())
    # The warning that comes before a time limit goes to whole process groups, and its default
    # is to kill. The ranks inherit this until they set their own handler.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    from torch.distributed import run
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(BACKEND, _handler)
    # The end point is not used, but without one torchrun warns.
    rendezvous = [f"--rdzv-backend={BACKEND}", "--rdzv-endpoint=127.0.0.1"]
    run.main(["--nnodes=1", *rendezvous, "--max-restarts=0", *sys.argv[2:]])


if __name__ == "__main__":
    main()
