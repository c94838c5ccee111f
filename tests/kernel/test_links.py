"""Honest people over bad links, and two of them behind one address."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from nfknock.core.model import Port
from tests.kernel.crowd import say
from tests.kernel.links import BadLink
from tests.lab import BASTION4, CLIENT4, NFKNOCK, Lab, wait_until

IS_LONG = "NFKNOCK_TEST_ALL" in os.environ
KNOCKS = 50 if IS_LONG else 12
PAIRS = 50
DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "{timeout}"
"""
SOURCE_PORTS = count(20_000)
SEQUENCE = (Port(7101), Port(8203, "udp"), Port(9307))


@pytest.fixture
def duplicating(kernel: None, tmp_path: Path) -> Iterator[BadLink]:
    link = BadLink(tmp_path, delay=0.2, duplicates=0.1)
    yield link
    link.stop()


@pytest.fixture
def lossy(kernel: None, tmp_path: Path) -> Iterator[BadLink]:
    link = BadLink(tmp_path, delay=0.2, duplicates=0.1, loss=0.05)
    yield link
    link.stop()


def knock(lab: Lab, port: Port) -> None:
    """Knock from a new source port, as each of two people does."""
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with lab.client.socket(socket.AF_INET, kind) as one:
        # One that the kernel gives may be one of the last few by chance, and then a datagram is an echo of that one.
        one.bind((CLIENT4, next(SOURCE_PORTS)))
        one.settimeout(0)
        if port.protocol == "tcp":
            one.connect_ex((BASTION4, port.number))
        else:
            one.sendto(b"x", (BASTION4, port.number))


def test_two_behind_one_address_both_get_in(lab: Lab) -> None:
    """Every step interleaved, pair after pair."""
    lab.configure(DOOR.format(timeout="2s"))
    lab.nfknock("apply")
    daemon = lab.daemon()
    for number in range(PAIRS):
        for port in SEQUENCE:
            knock(lab, port)
            knock(lab, port)
        daemon.wait_for("OPEN SESAME", count=2 * (number + 1))
    assert sum("OPEN SESAME" in line for line in daemon.lines) == 2 * PAIRS


def test_knock_opens_over_a_link_that_is_slow_and_doubles(duplicating: BadLink) -> None:
    """Debian's `knock`: every time, and only once each time."""
    duplicating.configure(DOOR.format(timeout="2s"))
    duplicating.nfknock("apply")
    daemon = duplicating.daemon()
    for number in range(KNOCKS):
        duplicating.client.run("knock", BASTION4, "7101:tcp", "8203:udp", "9307:tcp")
        daemon.wait_for("OPEN SESAME", count=number + 1)
    wait_until(lambda: sum("closed after" in line for line in daemon.lines) >= 1, "the end of a hole")
    assert sum("OPEN SESAME" in line for line in daemon.lines) == KNOCKS
    assert duplicating.doubled
    say(f"{KNOCKS} of {KNOCKS}; {duplicating.doubled} of {duplicating.carried} frames came twice")


def test_connect_gets_in_over_a_link_that_loses(lossy: BadLink) -> None:
    lossy.serve(22)
    lossy.configure(DOOR.format(timeout="10s"))
    lossy.nfknock("apply")
    lossy.daemon()
    sources = [f"192.0.2.{20 + number}" for number in range(KNOCKS)]
    for source in sources:
        lossy.client.run("ip", "addr", "add", f"{source}/24", "dev", "c0")

    def connect(source: str) -> bool:
        options = ["-I", source, "--timeout", "30", "--sequence", "7101,8203/udp,9307"]
        done = lossy.client.run(*NFKNOCK, "connect", BASTION4, "22", *options, check=False, stdin="hello\n")
        return done.returncode == 0 and done.stdout == "hello\n"

    with ThreadPoolExecutor(max_workers=6) as several:
        inside = list(several.map(connect, sources))
    say(f"{sum(inside)} of {KNOCKS}; {lossy.lost} of {lossy.carried} frames were lost")
    assert lossy.lost
    assert all(inside)
