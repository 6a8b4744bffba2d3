"""torchrun's rendezvous for one machine, on loopback.

torchrun's own rendezvous backends listen on all interfaces without any authentication. This one
listens on 127.0.0.1, on a port that the kernel chooses. So two runs cannot collide either.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

BACKEND = "rebias-loopback"


class Loopback(RendezvousHandler):
    """A rendezvous of a single node, which waits for no other."""

    # The ranks are clients of this store instead of opening one of their own.
    use_agent_store = True

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        listener = socket.create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        self._where = RendezvousStoreInfo(host, port)
        self._store = TCPStore(
            host,
            port,
            is_master=True,
            timeout=timedelta(minutes=10),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # the store closes it
        )

    def get_backend(self) -> str:
        """Return the name of this kind of rendezvous."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store, and that this is node 0 of 1."""
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, self._where)

    def is_closed(self) -> bool:
        """Return False: nobody else could close it."""
        return False

    def set_closed(self) -> None:
        """Do nothing: no other node needs to know."""

    def num_nodes_waiting(self) -> int:
        """Return 0: no other node can join."""
        return 0

    def get_run_id(self) -> str:
        """Return torchrun's name for the run."""
        return self._run_id

    def shutdown(self) -> bool:
        """Return True: nothing has to be closed."""
        return True
