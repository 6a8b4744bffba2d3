"""Restrict requests to addresses of the public Internet."""

import ipaddress
import socket
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
NOT_PUBLIC = "not a public address"


class NotPublicError(OSError):
    """A host's address is a loopback, private, link-local or otherwise reserved one."""

    def __init__(self) -> None:
        # Use the same words for every address: for a host with several, aiohappyeyeballs keeps
        # the type of their errors only if all have the same text.
        super().__init__(NOT_PUBLIC)


def is_public(address: str) -> bool:
    """Whether a numeric IPv4 or IPv6 address belongs to the public Internet.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) decides alone.
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
    """Return a fresh socket for an entry of ``getaddrinfo``; NotPublicError if it is not public.

    aiohttp calls this with the address that it is about to connect to. So a name that resolves
    differently the second time, a redirect or a numeric host cannot get around the check.
    """
    family, kind, protocol, _, target = address
    if not is_public(target[0]):
        raise NotPublicError
    return socket.socket(family, kind, protocol)
