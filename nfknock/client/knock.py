"""Sends a sequence of knocks, as knockd's `knock` does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from nfknock.client.hosts import UNREACHABLE, Host, open_socket, reason_of
from nfknock.core.model import Port
from nfknock.errors import ClientError

Tell = Callable[[str], None]


def silent(_line: str) -> None:
    """Tell nobody."""


def send_knocks(
    hosts: Sequence[Host], ports: Sequence[Port], *, delay: float = 0.0, source: Host | None = None, tell: Tell = silent
) -> Host:
    """Send one knock to each port, in order, `delay` seconds apart; `tell` gets a line for each.

    They go from `source` to the first of these addresses to which there is a way at all, and it is returned. Raises
    ClientError when a knock could not be sent.
    """
    for host in hosts[:-1]:
        with contextlib.suppress(_NoWayError):
            _knock(host, ports, delay, source, tell)
            return host
    _knock(hosts[-1], ports, delay, source, tell)
    return hosts[-1]


def _knock(host: Host, ports: Sequence[Port], delay: float, source: Host | None, tell: Tell) -> None:
    for index, port in enumerate(ports):
        if index and delay:
            time.sleep(delay)
        tell(f"hitting {port.protocol} {host}:{port.number}")
        try:
            _hit(host, port, source)
        except OSError as exc:
            kind = ClientError if index or exc.errno not in UNREACHABLE else _NoWayError
            raise kind(f"knocking at {host} {port}: {reason_of(exc)}") from exc


def _hit(host: Host, port: Port, source: Host | None) -> None:
    with open_socket(host, port.protocol, source) as knock:
        if port.protocol == "udp":
            knock.sendto(b"\0", host.at(port.number))
            return
        # The SYN leaves at once; closing the socket then keeps it from being repeated. A port that answers at once
        # with a refusal has been hit as well.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            knock.connect(host.at(port.number))


class _NoWayError(ClientError):
    """Not even the first knock could leave: there is no way to that address."""
