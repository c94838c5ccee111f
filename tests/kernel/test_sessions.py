"""Sessions that carry packets all the time, while the firewall is put in, changed, reloaded and taken out.

TCP sends again what was lost, so that a session alone shows nothing. In these two namespaces there is no traffic but
the test's, so a TCP segment that one host has sent, repetitions included, and the other has not received was dropped
in between. UDP packets bear numbers, and every number has to come.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

from nfknock.core.model import Port
from tests.kernel.crowd import beside, hit, put_foreign_rules, say, segments, widen
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Daemon, Lab, wait_until

ROUNDS = 50 if "NFKNOCK_TEST_ALL" in os.environ else 6
ALLOWED = {"tcp": 8443, "udp": 5000}
BEHIND_A_HOLE = {"tcp": 22, "udp": 2222}
SEQUENCE = (Port(7101), Port(8203, "udp"))
_SIZE = 8
_PAUSE = 0.002

DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp"]
open = ["22/tcp", "2222/udp"]
open_timeout = "60s"
"""
CONFIGS = (
    '[firewall]\nallow = ["8443/tcp", "5000/udp"]\n' + DOOR,
    # What was allowed is so no more; the hole is kept.
    '[firewall]\ninterfaces = ["b0"]\n' + DOOR.replace("7101", "7201"),
    # No door opens the hole any more: it is shut.
    '[firewall]\nallow = ["443/tcp"]\n[reader]\nanswer = "reject"\n' + DOOR.replace("ssh", "other"),
)


class Session:
    """One session from the client to the bastion, and what came of its packets."""

    def __init__(self, lab: Lab, bastion: str, kind: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in bastion else socket.AF_INET
        self.name = f"{bastion} {port}/{kind}"
        self.sent = 0
        self.came: set[int] = set()
        """Which numbers came to the bastion."""
        self.came_back: set[int] = set()
        self._is_tcp = kind == "tcp"
        self._rest = {True: b"", False: b""}
        how = socket.SOCK_STREAM if self._is_tcp else socket.SOCK_DGRAM
        self.client = lab.client.socket(family, how)
        listener = lab.bastion.socket(family, how)
        listener.bind((bastion, port))
        for one in (self.client, listener):
            widen(one)
        if self._is_tcp:
            listener.listen()
            self.client.connect((bastion, port))
            self.server, _address = listener.accept()
            listener.close()
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.client.connect((bastion, port))
            self.client.send((0).to_bytes(_SIZE))
            _data, address = listener.recvfrom(_SIZE)
            self.server = listener
            self.server.connect(address)
        for one in (self.client, self.server):
            one.settimeout(0)

    def send(self) -> None:
        # A session that is stuck takes nothing more; what it took before is missed soon enough.
        with contextlib.suppress(BlockingIOError):
            self.client.send((self.sent + 1).to_bytes(_SIZE))
            self.sent += 1

    def take(self, end: socket.socket) -> None:
        """Note what came to one end; the bastion sends it back."""
        is_server = end is self.server
        with contextlib.suppress(BlockingIOError):
            while data := end.recv(4096):
                data = self._rest[is_server] + data
                whole = len(data) - len(data) % _SIZE
                self._rest[is_server] = data[whole:]
                (self.came if is_server else self.came_back).update(
                    int.from_bytes(data[at : at + _SIZE]) for at in range(0, whole, _SIZE)
                )
                if is_server and whole:
                    end.send(data[:whole])

    def missing(self) -> tuple[set[int], set[int]]:
        """Return which numbers did not come, and which did not come back."""
        sent = set(range(1, self.sent + 1))
        return sent - self.came, sent - self.came_back

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Traffic:
    """All sessions, sending in turn from a thread of its own."""

    def __init__(self, lab: Lab, sessions: list[Session]) -> None:
        self._lab = lab
        self.sessions = sessions
        self._before = {host: segments(host) for host in (lab.client, lab.bastion)}

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Send while the block runs, then wait until what is on its way has come."""
        with beside(self._receive):
            with beside(self._send):
                yield
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not self.lost(), "all that was sent to come", within=3)

    def lost(self) -> dict[str, int]:
        """Return what was lost, nothing where nothing was."""
        found: dict[str, int] = {}
        for session in self.sessions:
            there, back = session.missing()
            found |= {f"{session.name} there": len(there), f"{session.name} back": len(back)}
        now = {host: segments(host) for host in self._before}
        sent, received, repeated = (
            {host: now[host][at] - self._before[host][at] for host in now} for at in ("sent", "received", "repeated")
        )
        found["TCP there"] = sent[self._lab.client] + repeated[self._lab.client] - received[self._lab.bastion]
        found["TCP back"] = sent[self._lab.bastion] + repeated[self._lab.bastion] - received[self._lab.client]
        self.repeated = sum(repeated.values())
        return {what: count for what, count in found.items() if count}

    def _send(self, enough: threading.Event) -> None:
        while not enough.wait(_PAUSE):
            for session in self.sessions:
                session.send()

    def _receive(self, enough: threading.Event) -> None:
        with selectors.DefaultSelector() as selector:
            for session in self.sessions:
                for end in (session.client, session.server):
                    selector.register(end, selectors.EVENT_READ, (session, end))
            while not enough.is_set():
                for key, _events in selector.select(0.1):
                    session, end = key.data
                    session.take(end)


@contextlib.contextmanager
def guarded(lab: Lab) -> Iterator[tuple[Daemon, Traffic]]:
    """A bastion with eight sessions: both families, TCP and UDP, to an allowed port and through a hole."""
    # A host that drops by itself would drop these when ours are out.
    put_foreign_rules(lab, policy6="ACCEPT")
    one_packet_at_a_time(lab)
    lab.configure(CONFIGS[0])
    lab.nfknock("apply")
    daemon = lab.daemon()
    with lab.client.here():
        for source in (CLIENT4, CLIENT6):
            hit(source, SEQUENCE)
    daemon.wait_for("opened 22/tcp, 2222/udp", count=2)
    sessions = [
        Session(lab, bastion, kind, port)
        for bastion in (BASTION4, BASTION6)
        for ports in (ALLOWED, BEHIND_A_HOLE)
        for kind, port in ports.items()
    ]
    try:
        wait_until(lambda: is_quiet(lab), "the sessions to stand")
        yield daemon, Traffic(lab, sessions)
    finally:
        for session in sessions:
            session.close()


def one_packet_at_a_time(lab: Lab) -> None:
    """Let no host hand over several segments as one packet: they would be counted as several here and as one there."""
    for host, device in ((lab.client, "c0"), (lab.bastion, "b0")):
        host.run("ip", "link", "set", device, "gso_max_segs", "1")


def is_quiet(lab: Lab) -> bool:
    """Whether nothing is on its way any more."""
    before = [segments(host) for host in (lab.client, lab.bastion)]
    time.sleep(0.1)
    return [segments(host) for host in (lab.client, lab.bastion)] == before


def all_miss(sessions: list[Session]) -> bool:
    """Whether more is missing of each than can be on its way."""
    return all(len(session.missing()[0]) > 20 for session in sessions)


def test_no_packet_of_a_session_is_lost_to_apply_reload_and_remove(lab: Lab) -> None:
    with guarded(lab) as (daemon, traffic):
        with traffic.flowing():
            for number in range(ROUNDS):
                lab.configure(CONFIGS[number % 3])
                assert lab.nfknock("apply").stdout == ("unchanged\n" if number == 0 else "changed\n")
                lab.configure(CONFIGS[(number + 1) % 3])
                daemon.signal(signal.SIGHUP)
                daemon.wait_for("reloaded", count=number + 1)
                assert lab.nfknock("remove").stdout == "changed\n"
        assert traffic.lost() == {}
        sent = [session.sent for session in traffic.sessions]
        say(f"{ROUNDS} times each; {sum(sent)} packets there and back, {traffic.repeated} TCP segments sent again")
        assert min(sent) > ROUNDS * 10, "hardly anything was sent"


def test_a_packet_that_a_rule_drops_would_be_seen(lab: Lab) -> None:
    """What the test above counts with counts: of TCP and of UDP, though TCP repairs it."""
    with guarded(lab) as (_daemon, traffic):
        with traffic.flowing():
            for command, bastion in (("iptables-legacy", BASTION4), ("ip6tables-legacy", BASTION6)):
                mine = [session for session in traffic.sessions if session.name.startswith(bastion)]
                lab.bastion.run(command, "-w", "-I", "INPUT", "-j", "DROP")
                wait_until(partial(all_miss, mine), "packets to be dropped")
                lab.bastion.run(command, "-w", "-D", "INPUT", "1")
        lost = traffic.lost()
        for session in traffic.sessions:
            if "/udp" in session.name:
                assert lost[f"{session.name} there"] > 0
        assert lost["TCP there"] > 0
        assert traffic.repeated > 0
