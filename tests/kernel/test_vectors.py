"""knockd's test vectors, by their numbers, through the kernel and the real daemon.

27 and 28 are in test_one_time.py, 24 to 26 in test_commands.py; the same numbers in tests/core/test_vectors.py go
through the core alone.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, Daemon, Lab

DOOR = """
[doors.ssh]
sequence = {sequence}
tcpflags = "syn"
seq_timeout = "5s"
open = ["22/tcp"]
open_timeout = "{open_timeout}"
"""
FAMILIES = pytest.mark.parametrize(("bastion", "client"), [(BASTION4, CLIENT4), (BASTION6, CLIENT6)])


def ready(lab: Lab, *sequence: str, open_timeout: str = "30s") -> Daemon:
    lab.serve(22)
    wanted = list(sequence or ("7000", "8000", "9000"))
    lab.configure(DOOR.format(sequence=wanted, open_timeout=open_timeout))
    lab.nfknock("apply")
    return lab.daemon()


def opened(daemon: Daemon) -> int:
    """How often it opened, once everything that was sent is read."""
    time.sleep(0.3)
    return sum("OPEN SESAME" in line for line in daemon.lines)


class Hand:
    """One person with a client of their own: every knock a new connection, kept until the end."""

    def __init__(self, lab: Lab, bastion: str) -> None:
        self._lab = lab
        self._bastion = bastion
        self._knocks = contextlib.ExitStack()

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._knocks.close()

    def knock(self, *ports: int) -> None:
        family = socket.AF_INET6 if ":" in self._bastion else socket.AF_INET
        for port in ports:
            made = self._knocks.enter_context(self._lab.client.socket(family, socket.SOCK_STREAM))
            made.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                made.connect((self._bastion, port))


@FAMILIES
def test_12_the_stages_and_open_sesame(lab: Lab, bastion: str, client: str) -> None:
    daemon = ready(lab)
    lab.knock(bastion, "7000", "8000", "9000")
    daemon.wait_for("opened 22/tcp")
    assert daemon.lines[1:] == [
        f"{client}: ssh: Stage 1",
        f"{client}: ssh: Stage 2",
        f"{client}: ssh: Stage 3",
        f"{client}: ssh: OPEN SESAME",
        f"{client}: ssh: opened 22/tcp for 30 s",
    ]


@FAMILIES
@pytest.mark.parametrize("knocks", [("7000", "7000", "8000", "9000"), ("7000", "9000", "7000", "8000", "9000")])
def test_14_a_first_knock_starts_anew(lab: Lab, bastion: str, client: str, knocks: tuple[str, ...]) -> None:
    daemon = ready(lab)
    lab.knock(bastion, *knocks)
    daemon.wait_for(f"{client}: ssh: opened 22/tcp")
    assert opened(daemon) == 1


@FAMILIES
def test_15_retransmissions_are_nothing(lab: Lab, bastion: str, client: str) -> None:
    daemon = ready(lab)
    with Hand(lab, bastion) as hand:
        hand.knock(7000, 8000)
        time.sleep(1.3)  # the kernel repeats both SYNs after one second
        hand.knock(9000)
        daemon.wait_for(f"{client}: ssh: opened 22/tcp")


def test_15_a_retransmission_is_no_second_knock(lab: Lab) -> None:
    daemon = ready(lab, "1111", "1111")
    with Hand(lab, BASTION4) as hand:
        hand.knock(1111)
        time.sleep(3.5)  # repeated after 1 s and after 3 s
        assert opened(daemon) == 0
        hand.knock(1111)
        daemon.wait_for("opened 22/tcp")


@FAMILIES
def test_16_two_behind_one_address_step_by_step(lab: Lab, bastion: str, client: str) -> None:
    daemon = ready(lab)
    with Hand(lab, bastion) as one, Hand(lab, bastion) as other:
        for port in (7000, 8000, 9000):
            one.knock(port)
            other.knock(port)
        daemon.wait_for(f"{client}: ssh: OPEN SESAME", count=2)
        daemon.wait_for(f"{client}: ssh: opened 22/tcp")
    assert lab.reaches(bastion, 22)


def test_17_fractions_of_a_second_count(lab: Lab) -> None:
    daemon = ready(lab)
    with Hand(lab, BASTION4) as in_time, Hand(lab, BASTION6) as late:
        in_time.knock(7000, 8000)
        late.knock(7000, 8000)
        time.sleep(4.1)
        in_time.knock(9000)
        time.sleep(0.95)
        late.knock(9000)
        daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
        assert opened(daemon) == 1
    assert f"{CLIENT6}: ssh: sequence timeout (stage 2)" in daemon.lines


def test_29_a_reload_keeps_deadlines_and_attempts_and_a_broken_file_changes_nothing(lab: Lab) -> None:
    daemon = ready(lab, open_timeout="4s")
    lab.knock(BASTION6, "7000", "8000", "9000")
    daemon.wait_for(f"{CLIENT6}: ssh: opened 22/tcp")
    lab.knock(BASTION4, "7000", "8000")
    daemon.wait_for(f"{CLIENT4}: ssh: Stage 2")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    lab.configure("[doors.ssh]\nsequence = 7000,8000\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("the new configuration was refused and the old one stays")
    lab.knock(BASTION4, "9000")
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp for 4 s")
    daemon.wait_for(f"{CLIENT6}: ssh: closed after 4 s")


@FAMILIES
def test_30_after_sigterm_holes_still_close_on_time(lab: Lab, bastion: str, client: str) -> None:
    daemon = ready(lab, open_timeout="3s")
    lab.knock(bastion, "7000", "8000", "9000")
    daemon.wait_for(f"{client}: ssh: opened 22/tcp")
    opened_at = time.time()
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    assert lab.reaches(bastion, 22)
    lab.wait_until_shut(bastion, 22)
    assert 2 <= time.time() - opened_at <= 4.5
