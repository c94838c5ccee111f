"""Sends a sequence of knocks, as knockd's `knock` does."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable

from nfknock.core.model import Port
from nfknock.errors import ClientError


def resolve(host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> tuple[socket.AddressFamily, str]:
    """Return the first address of a host, with its family. Raises ClientError when there is none."""
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as exc:
        wanted = {socket.AF_INET: "IPv4 ", socket.AF_INET6: "IPv6 "}.get(family, "")
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ClientError(f"finding an {wanted}address of {host!r}: {reason.lower()}") from exc
    kind, _type, _protocol, _name, address = found[0]
    return kind, str(address[0])


def send_knocks(
    host: str,
    ports: Iterable[Port],
    *,
    delay: float = 0.0,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Send one knock to each port, in order, `delay` seconds apart; `tell` gets a line for each.

    Raises ClientError when the name does not resolve or a knock could not be sent.
    """
    kind, address = resolve(host, family)
    for index, port in enumerate(ports):
        if index and delay:
            time.sleep(delay)
        tell(f"hitting {port.protocol} {address}:{port.number}")
        try:
            _hit(kind, address, port)
        except OSError as exc:
            raise ClientError(f"knocking at {address} {port}: {(exc.strerror or str(exc)).lower()}") from exc


def _hit(family: socket.AddressFamily, address: str, port: Port) -> None:
    # A scoped link-local address keeps its zone only when it is resolved anew.
    target = socket.getaddrinfo(address, port.number, family, 0, 0, socket.AI_NUMERICHOST)[0][4]
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as knock:
        knock.setblocking(False)  # noqa: FBT003  (its only parameter)
        if port.protocol == "udp":
            knock.sendto(b"\0", target)
            return
        # The SYN leaves at once; closing the socket then keeps it from being repeated. A port that answers at once
        # with a refusal has been hit as well.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            knock.connect(target)
