"""Shutting a door early ends what came through it, where that is wished."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Daemon, Host, Lab, echo, wait_until

DOORS = """
[doors.ssh]
sequence = ["7101", "8203/udp"]
close_sequence = ["8203/udp", "7101"]
open = ["22/tcp"]
cut_sessions = {cut}
[doors.web]
sequence = ["6101", "6203/udp"]
open = ["80/tcp"]
"""
# A reload takes no way in away that only it lets go.
ANOTHER_WAY_IN = """
[doors.back]
sequence = ["5101", "5203/udp"]
open = ["22/tcp"]
"""
FAMILIES = pytest.mark.parametrize(("bastion", "client"), [(BASTION4, CLIENT4), (BASTION6, CLIENT6)])


def ready(lab: Lab, cut: str = "true") -> Daemon:
    lab.serve(22)
    lab.serve(80)
    lab.configure(DOORS.format(cut=cut))
    lab.nfknock("apply")
    return lab.daemon()


def let_in(lab: Lab, daemon: Daemon, bastion: str) -> tuple[socket.socket, socket.socket]:
    """Open both doors and return a session through each."""
    lab.knock(bastion, "7101", "8203:udp")
    lab.knock(bastion, "6101", "6203:udp")
    daemon.wait_for("opened 22/tcp")
    daemon.wait_for("opened 80/tcp")
    sessions = lab.connect(bastion, 22), lab.connect(bastion, 80)
    for session in sessions:
        assert echo(session) == b"hello\n"
    return sessions


def is_dead(session: socket.socket) -> bool:
    session.settimeout(1.5)
    try:
        return echo(session) != b"hello\n"
    except TimeoutError:
        return True


def shut(lab: Lab, daemon: Daemon, how: str, bastion: str, client: str) -> None:
    match how:
        case "sequence":
            lab.knock(bastion, "8203:udp", "7101")
            daemon.wait_for(f"{client}: 1 session was cut")
        case "close":
            assert "1 session was cut" in lab.nfknock("close", "ssh", client).stdout
        case "removal":
            lab.configure("[doors.web]" + DOORS.partition("[doors.web]")[2] + ANOTHER_WAY_IN)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for(f"{client}: 1 session was cut")
        case "reload":
            lab.configure(DOORS.format(cut="true").replace("doors.ssh", "doors.other"))
            daemon.signal(signal.SIGHUP)
            daemon.wait_for(f"{client}: ssh: closed: there is no such door any more")
            daemon.wait_for(f"{client}: 1 session was cut")


@FAMILIES
@pytest.mark.parametrize("how", ["sequence", "close", "reload"])
def test_shutting_early_cuts_that_session_alone(lab: Lab, how: str, bastion: str, client: str) -> None:
    daemon = ready(lab)
    through_ssh, through_web = let_in(lab, daemon, bastion)
    shut(lab, daemon, how, bastion, client)
    assert is_dead(through_ssh)
    assert not is_dead(through_web)


def test_without_it_sessions_live_on(lab: Lab) -> None:
    daemon = ready(lab, "false")
    through_ssh, _web = let_in(lab, daemon, BASTION4)
    lab.knock(BASTION4, "8203:udp", "7101")
    daemon.wait_for("closed after")
    lab.nfknock("close", "--all")
    assert not is_dead(through_ssh)


def test_a_hole_that_ends_by_time_cuts_nothing(lab: Lab) -> None:
    lab.serve(22)
    lab.configure(DOORS.format(cut="true").replace("[doors.web]", 'open_timeout = "2s"\n[doors.web]'))
    lab.nfknock("apply")
    daemon = lab.daemon()
    lab.knock(BASTION4, "7101", "8203:udp")
    daemon.wait_for("opened 22/tcp")
    session = lab.connect(BASTION4, 22)
    daemon.wait_for("closed after 2 s")
    assert not is_dead(session)


@contextlib.contextmanager
def talkative(host: Host, port: int) -> Iterator[list[bytes]]:
    """A service that sends without end, and what it hears."""
    heard: list[bytes] = []
    listener = host.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen()
    done = threading.Event()

    def talk() -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)  # noqa: FBT003
        while not done.is_set():
            with contextlib.suppress(BlockingIOError):
                connection.send(b"and on\n")
            with contextlib.suppress(BlockingIOError):
                heard.append(connection.recv(4096))
            time.sleep(0.005)
        connection.close()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join(5)
        listener.close()


@FAMILIES
@pytest.mark.parametrize("how", ["close", "removal"])
def test_a_service_that_goes_on_sending_does_not_revive_it(lab: Lab, how: str, bastion: str, client: str) -> None:
    lab.configure(DOORS.format(cut="true"))
    lab.nfknock("apply")
    daemon = lab.daemon()
    with talkative(lab.bastion, 22) as heard:
        lab.knock(bastion, "7101", "8203:udp")
        daemon.wait_for("opened 22/tcp")
        session = lab.connect(bastion, 22)
        session.sendall(b"before\n")
        assert session.recv(100)
        shut(lab, daemon, how, bastion, client)
        assert is_deaf(session, heard)


def is_deaf(session: socket.socket, heard: list[bytes]) -> bool:
    """Whether a service hears nothing more of what is said to it."""
    wait_until(lambda: b"before\n" in b"".join(heard), "what was said before")
    for _ in range(20):
        with contextlib.suppress(OSError):
            session.send(b"after\n")
        time.sleep(0.05)
    return b"after\n" not in b"".join(heard)
