"""Packets that need no session, as what they ask for is allowed: while the list of what is allowed is reloaded."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading

from nfknock.core.model import Port
from tests.kernel.crowd import beside, hit, say, segments, widen
from tests.lab import CLIENT4, CLIENT6, Lab, wait_until

ROUNDS = 50 if "NFKNOCK_TEST_ALL" in os.environ else 6
MORE = 20
TCP, UDP = Port(8443), Port(5000, "udp")
_PAUSE = 0.0005

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp"]
open = ["22/tcp"]
"""
STILL_ALLOWED = tuple(
    f"[firewall]\nallow = [{allow}]\n{DOOR}"
    for allow in (
        '"8443/tcp", "5000/udp"',
        '"443/tcp", { open = "22/tcp", from = "198.51.100.7" }, "5000/udp", "8443/tcp"',
        '{ open = "8443/tcp", from = "192.0.2.0/24" }, { open = "8443/tcp", from = "2001:db8::/32" }, "5000/udp"',
    )
)
"""In each of them the same packets are allowed, by other rules or in other places."""


class Newcomers:
    """Begins one TCP connection and one UDP exchange after the other, from a new port and in a new family each time."""

    def __init__(self, lab: Lab) -> None:
        self.begun = 0
        self._lab = lab
        self._before = {host: segments(host) for host in (lab.client, lab.bastion)}
        self._taken = 0
        # Nobody listens for TCP: a refusal ends a connection with its first packet.
        self._listener = lab.bastion.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        widen(self._listener)
        self._listener.bind(("::", UDP.number))
        self._listener.settimeout(0)

    def close(self) -> None:
        self._listener.close()

    def wait_for_more(self) -> None:
        """Wait until so many more have begun, and been let in or not."""
        begun = self.begun
        wait_until(lambda: self.begun > begun + MORE, "newcomers to come")

    def come(self, enough: threading.Event) -> None:
        """Let one come after the other."""
        with self._lab.client.here():
            while not enough.wait(_PAUSE):
                source = (CLIENT4, CLIENT6)[self.begun % 2]
                hit(source, [TCP, UDP])
                self.begun += 1

    def lost(self) -> tuple[int, int]:
        """Return how many TCP segments and UDP datagrams did not come, once all that came was taken."""
        with contextlib.suppress(BlockingIOError):
            while self._listener.recv(1):
                self._taken += 1
        now = {host: segments(host) for host in self._before}
        sent, received = (
            now[host][what] - self._before[host][what]
            for host, what in ((self._lab.client, "sent"), (self._lab.bastion, "received"))
        )
        return sent - received, self.begun - self._taken


def test_no_newcomer_to_what_stays_allowed_is_lost_to_a_reload(lab: Lab) -> None:
    """Every packet is the first of its connection: none is let in because it belongs to a session."""
    lab.configure(STILL_ALLOWED[0])
    lab.nfknock("apply")
    daemon = lab.daemon()
    loaded = set()
    with contextlib.closing(Newcomers(lab)) as newcomers:
        with beside(newcomers.come):
            for number in range(1, ROUNDS + 1):
                lab.configure(STILL_ALLOWED[number % 3])
                daemon.signal(signal.SIGHUP)
                daemon.wait_for("reloaded", count=number)
                loaded.add(lab.rules())
                newcomers.wait_for_more()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: newcomers.lost() == (0, 0), "all to come", within=5)
        assert newcomers.lost() == (0, 0)
        assert len(loaded) == len(STILL_ALLOWED)
        say(f"{ROUNDS} reloads, {newcomers.begun} newcomers, TCP and UDP each")
        lab.configure(STILL_ALLOWED[0].replace("8443", "8444").replace("5000", "5001"))
        lab.nfknock("apply")
        with beside(newcomers.come):
            newcomers.wait_for_more()
        # What is lost would be seen.
        assert min(newcomers.lost()) >= MORE
