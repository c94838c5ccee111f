"""Floods from made-up addresses: who knows the sequence gets in, memory and log stay small."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event

import pytest

from nfknock.core.model import Port
from tests.core.story import SYN
from tests.kernel import packets
from tests.kernel.crowd import beside, hit, say
from tests.lab import BASTION4, CLIENT4, Daemon, Lab, wait_until

IS_LONG = "NFKNOCK_TEST_ALL" in os.environ
# A full flood wants a processor for whoever sends it and one for whoever is flooded.
RATE, SECONDS, CLIENTS, TRIES, WITHIN = (100_000, 30.0, 30, 1, 1.0) if IS_LONG else (20_000, 4.0, 5, 3, 3.0)
MOST_MEMORY = 96 << 10
DOOR = """
[doors.ssh]
sequence = ["7101", "8203", "9307"]
open = ["22/tcp"]
open_timeout = "2s"
"""
SEQUENCE = (Port(7101), Port(8203), Port(9307))
SHAPES = {"the first knock": "7101", "every knock": "7101,8203,9307", "any port": "0"}


@contextmanager
def flood(lab: Lab, ports: str, seconds: float = SECONDS) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.kernel.packets", BASTION4, str(RATE), str(seconds), ports]
    sender = lab.client.start(*command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert sender.stdout is not None
    try:
        assert sender.stdout.readline() == "ready\n"
        yield sender
        sent, _ = sender.communicate(timeout=seconds + 60)
        say(f"{int(sent) / seconds:.0f} packets a second to {ports}")
    finally:
        sender.kill()
        sender.communicate()


def memory(daemon: Daemon) -> int:
    """Return how much of it was resident at most, in KiB."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def gets_in(lab: Lab, daemon: Daemon, source: str) -> bool:
    for _ in range(TRIES):
        with lab.client.here():
            hit(source, SEQUENCE)
        try:
            daemon.wait_for(f"{source}: ssh: opened 22/tcp", within=WITHIN)
        except AssertionError:
            continue
        return True
    return False


@pytest.mark.parametrize("shape", SHAPES)
def test_who_knows_the_sequence_gets_in_through_a_flood(lab: Lab, shape: str) -> None:
    lab.configure(DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()
    clients = [f"192.0.2.{20 + number}" for number in range(CLIENTS)]
    for client in clients:
        lab.client.run("ip", "addr", "add", f"{client}/24", "dev", "c0")
    with flood(lab, SHAPES[shape]):
        began_at = time.monotonic()
        time.sleep(SECONDS / 5)  # the flood is to be there first
        inside = sum(gets_in(lab, daemon, client) for client in clients)
    passed = time.monotonic() - began_at
    lines = [line for line in daemon.lines if not any(f"{client}:" in line for client in clients)]
    counters = json.loads(lab.nfknock("status", "--json").stdout)["daemon"]
    say(f"{inside} of {CLIENTS} got in, {memory(daemon) >> 10} MiB, {len(lines) / passed:.1f} lines/s, {counters}")
    assert inside >= CLIENTS - 1
    assert memory(daemon) < MOST_MEMORY
    assert len(lines) < 20 + 10 * passed


def test_a_flood_of_strays_pushes_out_no_knock(lab: Lab) -> None:
    """Ten times as many as are shown: every knock is heard, and a scan under its cover opens nothing."""
    lab.configure(DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()
    chance = random.Random(1)
    with flood(lab, "0", 4):
        time.sleep(0.5)
        for number in range(10):
            ports = list(range(6000, 10_000))
            chance.shuffle(ports)
            with lab.client.here():
                packets.scan(BASTION4, f"198.51.100.{number + 1}", ports, SYN)
        assert gets_in(lab, daemon, CLIENT4)
    opened = [line for line in daemon.lines if "OPEN SESAME" in line]
    assert all(line.startswith(f"{CLIENT4}: ") for line in opened)
    wait_until(lambda: "hit 20 closed ports" in "\n".join(daemon.lines), "a scanner to be noticed")
    assert json.loads(lab.nfknock("status", "--json").stdout)["daemon"]["strays_lost"] == 0


def test_first_knocks_from_somebody_s_own_address_keep_nobody_out(lab: Lab) -> None:
    """Attempts at one stage are as good as each other, and there are never too few of them."""
    lab.configure(DOOR)
    lab.nfknock("apply")
    daemon = lab.daemon()

    def knock_all_the_time(enough: Event) -> None:
        with lab.client.here():
            sender, template = packets.Sender(BASTION4), packets.Template(BASTION4)
        address = int.from_bytes(socket.inet_aton(CLIENT4), "big")
        for number in count():
            template.write(sender.buffer, 0, address, SEQUENCE[0].number, number)
            sender.send(1)
            if enough.wait(0.001):
                break
        sender.close()

    with beside(knock_all_the_time):
        wait_until(lambda: knocks(lab) > 100, "the flood")
        assert gets_in(lab, daemon, CLIENT4)


def knocks(lab: Lab) -> int:
    return int(json.loads(lab.nfknock("status", "--json").stdout)["daemon"]["knocks"])


def test_a_flood_from_somebody_s_own_address_keeps_only_that_one_out(lab: Lab) -> None:
    """What is promised is no more than that: it opens nothing, others get in, and it is over when the flood is."""
    lab.configure(DOOR + '[guard]\nignore_timeout = "1s"\n')
    lab.nfknock("apply")
    daemon = lab.daemon()
    with lab.client.here():
        for _ in range(5):
            packets.scan(BASTION4, CLIENT4, range(10_000, 10_500), SYN)
        hit(CLIENT4, SEQUENCE)
    daemon.wait_for(f"{CLIENT4}: hit 20 closed ports")
    lab.client.run("ip", "addr", "add", "192.0.2.20/24", "dev", "c0")
    assert gets_in(lab, daemon, "192.0.2.20")
    assert not any(f"{CLIENT4}: ssh: OPEN SESAME" in line for line in daemon.lines)
    time.sleep(1.2)  # that is how long it is ignored
    lab.knock(BASTION4, "7101", "8203", "9307")
    daemon.wait_for(f"{CLIENT4}: ssh: opened 22/tcp")
