"""TCP connection attempts that wait beside each other; the first that is answered wins.

A firewall that drops says nothing, and the kernel repeats a SYN only after a second, then after two more. So attempts
are begun anew at short intervals, and none is given up early: over a slow path the first of them may be the one that
is answered. A refusal means no more than that the port does not answer yet.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence

from nfknock.client.hosts import PENDING, UNREACHABLE, Host, error, open_socket, reason_of


class Attempts:
    """Attempts to reach one port of a host, by all of its addresses."""

    def __init__(self, hosts: Sequence[Host], port: int, source: Host | None) -> None:
        self.reachable = list(hosts)
        """The addresses to which there is a way at all."""
        self.reasons: dict[Host, str] = {}
        """What was last heard from the addresses that did not merely stay silent."""
        self._port = port
        self._source = source
        self._winner: socket.socket | None = None
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_exc: object) -> None:
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    @property
    def are_pending(self) -> bool:
        """Whether anything may still be answered."""
        return bool(self._selector.get_map()) or self._winner is not None

    def begin(self) -> None:
        """Begin one more attempt at every address. Raises ClientError when this host has no such source address."""
        for host in list(self.reachable):
            if self._winner is None:
                self._begin(host)

    def wait(self, seconds: float) -> socket.socket | None:
        """Return the first connection that is answered within so long. It is for the caller to close."""
        until = time.monotonic() + seconds
        left = seconds
        while self._winner is None:
            if not self._selector.get_map():
                time.sleep(max(0.0, left))  # select() of nothing is an error on Windows
                break
            # Looked once even if the time is over: we may have been asleep while the answer came.
            for key, _events in self._selector.select(max(0.0, left)):
                self._settle(key)
            if (left := until - time.monotonic()) <= 0:
                break
        winner, self._winner = self._winner, None
        return winner

    def _begin(self, host: Host) -> None:
        try:
            attempt = open_socket(host, "tcp", self._source)
        except OSError as exc:
            self._give_up(host, exc)
            return
        code = attempt.connect_ex(host.at(self._port))
        if code == 0 and _is_answered(attempt):
            self._winner = attempt  # on loopback, at once
        elif code in PENDING:
            self._selector.register(attempt, selectors.EVENT_WRITE, host)
        else:
            attempt.close()
            self._give_up(host, error(code))

    def _settle(self, key: selectors.SelectorKey) -> None:
        attempt, host = key.fileobj, key.data
        assert isinstance(attempt, socket.socket)
        self._selector.unregister(attempt)
        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0 and self._winner is None and _is_answered(attempt):
            self._winner = attempt
            return
        attempt.close()
        if code:
            # It came from afar, from a router on the way perhaps, and may be another the next time.
            self.reasons[host] = reason_of(error(code))

    def _give_up(self, host: Host, exc: OSError) -> None:
        self.reasons[host] = reason_of(exc)
        if exc.errno in UNREACHABLE:
            self.reachable.remove(host)


def _is_answered(attempt: socket.socket) -> bool:
    """Whether somebody is at the other end: somebody else than the attempt itself.

    A connection to a free port of this host may meet itself there, when it is given that port as its own.
    """
    try:
        return bool(attempt.getpeername() != attempt.getsockname())
    except OSError:
        return False
