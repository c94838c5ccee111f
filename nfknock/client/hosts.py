"""Names to addresses, and sockets that go there."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any

from nfknock.core.model import Protocol
from nfknock.errors import ClientError

_KINDS: dict[Protocol, socket.SocketKind] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_FAMILIES = {socket.AF_INET: "IPv4 ", socket.AF_INET6: "IPv6 "}

# What connecting without waiting says when it has begun: POSIX says EINPROGRESS, Windows WSAEWOULDBLOCK.
PENDING = frozenset((errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN, errno.EALREADY, 10035, 10036))
# No way there from this host, whatever the other end may be (with Windows' numbers for it).
UNREACHABLE = frozenset((
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL,
    10047, 10049, 10050, 10051, 10065,
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """One address of a host, as the system has it: `place` is a socket address, its port to be filled in."""

    family: socket.AddressFamily
    place: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.place[0])

    def at(self, port: int) -> tuple[Any, ...]:
        """Return the socket address of a port. A link-local address keeps its zone."""
        return (self.place[0], port, *self.place[2:])


def resolve(host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> tuple[Host, ...]:
    """Return every address of a host, in the system's order of preference. Raises ClientError when there is none."""
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ClientError(f"finding an {_FAMILIES.get(family, '')}address of {host!r}: {reason.lower()}") from exc
    return tuple(dict.fromkeys(Host(kind, place) for kind, _type, _protocol, _name, place in found))


def parse_source(text: str) -> Host:
    """Read an address of this host to knock from. Raises ValueError when it is no address.

    Whether it is one of this host's is known when it is used.
    """
    try:
        family = socket.AF_INET if isinstance(ip_address(text), IPv4Address) else socket.AF_INET6
        place = socket.getaddrinfo(text, None, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None
    return Host(family, place)


def open_socket(host: Host, protocol: Protocol, source: Host | None) -> socket.socket:
    """Return a socket that never waits, to reach a host from `source`.

    Raises ClientError when this host has no such address, OSError when it has no such family.
    """
    made = socket.socket(host.family, _KINDS[protocol])
    try:
        made.setblocking(False)  # noqa: FBT003  (its only parameter)
        if source is not None:
            made.bind(source.at(0))
    except OSError as exc:
        made.close()
        if source is not None and exc.errno in UNREACHABLE:
            raise ClientError(f"knocking from {source}: this host has no such address") from exc
        raise
    return made


def name_of(host: str, addresses: Sequence[Host]) -> str:
    """Return how a message calls a host: by its name, with the addresses that it stands for."""
    listed = ", ".join(map(str, addresses))
    return listed if listed == host else f"{host} ({listed})"


def error(code: int) -> OSError:
    """Return the error of that number. Windows has the texts of its sockets' errors in a table of their own."""
    return OSError(code, getattr(socket, "errorTab", {}).get(code, os.strerror(code)).rstrip("."))


def reason_of(exc: OSError) -> str:
    """Return why it failed, as a message ends."""
    return (exc.strerror or str(exc)).lower()
