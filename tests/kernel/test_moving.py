"""Another `backend` in the configuration, then `apply`: nothing is stopped that may pass, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from nfknock.backends import Change, make_backend
from nfknock.backends.succession import Succession
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import BackendChoice, Plan
from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, STRANGER4, Lab, echo, wait_until

DOORS = """
[reader]
kind = "nflog"
[firewall]
backend = "{}"
allow = ["5301/udp"]
[doors.ssh]
sequence = ["7101", "8203/udp"]
open = ["22/tcp", "5300/udp"]
open_timeout = "2m"
[doors.web]
sequence = ["7111", "8213/udp"]
open = ["22/tcp"]
open_timeout = "2m"
"""
ECHO = (
    "import socket, threading\n"
    "def serve(port):\n"
    "    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_IPV6, 26, 0)\n"
    "    s.bind(('::', port)); print(flush=True)\n"
    "    while True: s.sendto(*s.recvfrom(100))\n"
    "threading.Thread(target=serve, args=(5301,)).start(); serve(5300)\n"
)
MOVES = [("iptables", "ipset"), ("ipset", "iptables"), ("iptables", "nftables"), ("nftables", "ipset")]


@pytest.fixture
def answered(lab: Lab) -> Iterator[None]:
    """Have datagrams to 5300 and 5301 answered on the bastion."""
    server = lab.bastion.start(sys.executable, "-c", ECHO, stdout=-1)
    assert server.stdout is not None
    for _ in range(2):
        server.stdout.readline()
    yield
    server.kill()
    server.communicate()


@contextlib.contextmanager
def asking(lab: Lab, source: str, bastion: str, port: int) -> Iterator[list[socket.socket]]:
    """Send datagrams meanwhile, each from a port of its own: to the firewall each of them is new."""
    sent: list[socket.socket] = []
    is_over = threading.Event()
    family = socket.AF_INET6 if ":" in source else socket.AF_INET

    def ask() -> None:
        while not is_over.wait(0.005):
            asked = lab.client.socket(family, socket.SOCK_DGRAM, source)
            asked.sendto(b"x", (bastion, port))
            sent.append(asked)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield sent
    finally:
        is_over.set()
        thread.join()


def all_were_answered(sent: list[socket.socket]) -> bool:
    """Whether each datagram got its answer; nothing sends one again."""
    with contextlib.ExitStack() as closing:
        for asked in sent:
            closing.enter_context(asked)
        try:
            return bool(sent) and all(asked.recv(100) == b"x" for asked in sent)
        except TimeoutError:
            return False


@pytest.mark.parametrize(("old", "new"), MOVES)
def test_a_move_stops_nothing_and_leaves_nothing(lab: Lab, answered: None, old: str, new: str) -> None:
    lab.serve(22)
    lab.configure(DOORS.format(old))
    lab.nfknock("apply")
    daemon = lab.daemon()
    for bastion in (BASTION4, BASTION6):
        lab.knock(bastion, "7101", "8203:udp")
    lab.knock(BASTION4, "7111", "8213:udp")
    daemon.wait_for(": opened ", count=3)
    sessions = [lab.connect(bastion, 22) for bastion in (BASTION4, BASTION6)]
    before = {(each["door"], each["source"]): each["closes_at"] for each in holes(lab)}
    lab.configure(DOORS.format(new))
    with (
        asking(lab, CLIENT4, BASTION4, 5300) as through_hole,
        asking(lab, CLIENT6, BASTION6, 5300) as through_hole6,
        asking(lab, CLIENT4, BASTION4, 5301) as to_allowed,
    ):
        wait_until(lambda: len(through_hole) > 5, "the first datagrams")
        assert "changed" in lab.nfknock("apply").stdout
        count = len(through_hole)
        wait_until(lambda: len(through_hole) > count + 5, "some more")
    assert all(all_were_answered(sent) for sent in (through_hole, through_hole6, to_allowed))
    assert [echo(session) for session in sessions] == [b"hello\n"] * 2
    after = {(each["door"], each["source"]): each["closes_at"] for each in holes(lab)}
    assert after == before
    has_set = "--match-set" in lab.rules()
    assert has_set == (new == "ipset")
    assert lab.nfknock("apply").stdout == "unchanged\n"
    # The daemon writes by the new one from now on.
    lab.nfknock("close", "--all")
    lab.knock(BASTION6, "7101", "8203:udp")
    daemon.wait_for(": opened ", count=4)
    assert [each["source"] for each in holes(lab)] == [CLIENT6]
    lab.nfknock("remove")
    assert "nfknock" not in lab.rules().lower()


def holes(lab: Lab) -> list[dict[str, str]]:
    report = json.loads(lab.nfknock("status", "--json").stdout)
    assert report["firewall"]["applied"]
    return list(report["holes"])


@pytest.mark.parametrize(("old", "new"), MOVES)
def test_a_move_on_trial_is_taken_back(bare: Lab, old: str, new: str) -> None:
    lab = bare
    lab.serve(22)
    lab.configure(DOORS.format(old))
    lab.nfknock("apply")
    lab.nfknock("open", "ssh", CLIENT4)
    before = lab.rules()
    [hole] = holes(lab)
    lab.configure(DOORS.format(new))
    done = lab.nfknock("apply", "--confirm", "2", check=False)
    assert "nobody confirmed within 2 s; the firewall is as it was before" in done.stderr
    lab.configure(DOORS.format(old))
    assert lab.rules() == before
    assert [each["closes_at"] for each in holes(lab)] == [hole["closes_at"]]
    assert lab.reaches(BASTION4, 22)


def test_a_move_that_finds_no_room_leaves_everything_as_it_was(bare: Lab) -> None:
    bare.serve(22)
    bare.configure(DOORS.format("iptables"))
    bare.nfknock("apply")
    bare.nfknock("open", "ssh", CLIENT4)
    before = bare.rules()
    bare.configure(DOORS.format("nftables").replace("allow =", "set_size = 1\nallow ="))
    for _attempt in range(2):
        done = bare.nfknock("apply", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "a set of holes is full" in done.stderr
        assert bare.rules() == before
    assert bare.reaches(BASTION4, 22)
    bare.configure(DOORS.format("nftables"))
    assert bare.nfknock("apply").stdout == "changed\n"
    assert bare.reaches(BASTION4, 22)


@pytest.mark.parametrize(("old", "new"), MOVES)
def test_what_a_daemon_does_meanwhile_moves_as_well(
    namespace: None, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(baseline=(), allowed=(), knock_ports=(Port(7101),), queue=5, reader="nflog", opens=(Port(22),))
    shut, kept, opened = (
        Hole(door="ssh", source=ip_address(source), opens=(Opening(Port(22)),), opened_at=time.time(), closes_at=None)
        for source in (CLIENT4, CLIENT6, STRANGER4)
    )
    daemon, moving = make_backend(BackendChoice(name=old)), make_backend(BackendChoice(name=new))
    daemon.apply(plan)
    daemon.open([shut, kept])
    assert isinstance(moving, Succession)
    apply = moving._chosen.apply

    def applies(*given: Any, **named: Any) -> Change:
        # What was open has been read by now.
        daemon.close([shut.key])
        daemon.open([opened])
        return apply(*given, **named)

    monkeypatch.setattr(moving._chosen, "apply", applies)
    assert moving.apply(plan).replaced == (old,)
    assert {hole.key for hole in moving.holes()} == {kept.key, opened.key}
