"""torchrun's rendezvous for one machine, on loopback.

torchrun's own rendezvous backends listen on all interfaces without any authentication. This one
listens on 127.0.0.1, on a port that the kernel chooses. So two runs cannot collide either.
"""

from __future__ import annotations

import socket

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

BACKEND = "rebias-loopback"


class Loopback(StaticTCPRendezvous):
    """A rendezvous of a single node. The ranks are clients of its store."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        super().__init__(host, port, 0, 1, parameters.run_id, timeout=600)

    def get_backend(self) -> str:
        """Return the name of this kind of rendezvous."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store, and that this is node 0 of 1; it is called once, without restarts."""
        self._store = TCPStore(
            self.master_addr,
            self.master_port,
            is_master=True,
            timeout=self.timeout,
            wait_for_workers=False,
            master_listen_fd=self._listener.detach(),  # the store closes it
        )
        where = RendezvousStoreInfo(self.master_addr, self.master_port)
        return RendezvousInfo(PrefixStore(self.run_id, self._store), 0, 1, where)
