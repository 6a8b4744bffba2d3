"""Which network addresses may be asked: those of the public Internet alone."""

import ipaddress
import socket
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
NOT_PUBLIC = "not a public address"


class NotPublicError(OSError):
    """A host's address is a loopback, private, link-local or otherwise reserved one."""

    def __init__(self) -> None:
        # The same words for every address: a host with several then still fails as this.
        super().__init__(NOT_PUBLIC)


def is_public(address: str) -> bool:
    """Whether a numeric IPv4 or IPv6 address belongs to the public Internet.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is judged itself.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(found.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def public_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a fresh socket for an entry of ``getaddrinfo``; NotPublicError if it may not be asked.

    Called with the very address that is about to be connected, so that nothing (a name that
    resolves differently the second time, a redirect, a numeric host) gets around it.
    """
    family, kind, protocol, _, target = address
    if not is_public(target[0]):
        raise NotPublicError
    return socket.socket(family, kind, protocol)
