"""Somebody else edits their own rules all the time, with the lock, while nfknock opens and closes many holes."""

from __future__ import annotations

import os
import random
import re
import threading
import time

from nfknock.core.model import Port
from tests.kernel.crowd import beside, hit, hole_rules, move_in, owned_holes, put_foreign_rules, say
from tests.lab import Lab, wait_until
from tests.setting import CHOSEN

SEED = 20261121
HOLES, SECONDS = (500, 10.0) if "NFKNOCK_TEST_ALL" in os.environ else (100, 3.0)
AT_ONCE = 10
SEQUENCE = (Port(7101), Port(8203, "udp"))
CLOSING = (Port(8203, "udp"), Port(9307))
CONFIG = """
[doors.ssh]
sequence = ["7101", "8203/udp"]
open = ["22/tcp"]
open_timeout = "10m"
close_sequence = ["8203/udp", "9307"]
"""
DOORS = {"ssh": frozenset({Port(22)})}
FIRST_PORT = 20_000
COMMANDS = (
    ("iptables-nft", "ip6tables-nft") if CHOSEN.backend == "nftables" else ("iptables-legacy", "ip6tables-legacy")
)


class Stranger:
    """Inserts, replaces and deletes rules of its own, and knows what must come of it."""

    def __init__(self, lab: Lab, command: str) -> None:
        self.done = dict.fromkeys(("-I", "-R", "-D"), 0)
        self._lab = lab
        self._command = command
        self._chance = random.Random(f"{SEED} {command}")
        self._ports = iter(range(FIRST_PORT, 65_536))
        lab.bastion.run(command, "-w", "-N", "theirs")
        # Of INPUT's rules the first may be ours; what was there before stands at its end and stays there.
        self._chains: dict[str, list[int]] = {"INPUT": [], "theirs": []}
        first = lab.bastion.run(command, "-S", "INPUT").stdout.splitlines()[1]
        self._before = {"INPUT": int("nfknock" in first), "theirs": 0}

    def work(self, enough: threading.Event) -> None:
        while not enough.is_set():
            self._work()

    def _work(self) -> None:
        chain = self._chance.choice(list(self._chains))
        rules = self._chains[chain]
        verb = self._chance.choice(("-I", "-R", "-D") if len(rules) > 5 else ("-I",))
        at = self._chance.randrange(len(rules) + (verb == "-I"))
        number = next(self._ports) if verb != "-D" else 0
        rule = ["-p", "tcp", "--dport", str(number), "-j", "ACCEPT"] if number else []
        self._lab.bastion.run(self._command, "-w", verb, chain, str(at + 1 + self._before[chain]), *rule)
        rules[at : at + (verb != "-I")] = [number] if number else []
        self.done[verb] += 1

    def check(self) -> None:
        """Whether all that was done stands, in its order, and nothing that was undone."""
        for chain, rules in self._chains.items():
            listing = self._lab.bastion.run(self._command, "-w", "-S", chain).stdout
            found = [int(port) for port in re.findall(r"--dport (2\d{4}) -j ACCEPT", listing)]
            assert found == rules, f"{self._command} {chain}"


def knock_in_turn(lab: Lab, sources: list[str], sequence: tuple[Port, ...]) -> None:
    """Let them knock, some at a time, over half of the time that the race takes."""
    began_at = time.monotonic()
    with lab.client.here():
        for first in range(0, len(sources), AT_ONCE):
            for source in sources[first : first + AT_ONCE]:
                hit(source, sequence)
            due_at = began_at + SECONDS / 2 * (first + AT_ONCE) / len(sources)
            time.sleep(max(0.0, due_at - time.monotonic()))


def test_nothing_of_either_side_is_lost_in_a_race(lab: Lab) -> None:
    say(f"seed {SEED}")
    sources = move_in(lab, HOLES)
    put_foreign_rules(lab)
    foreign = set(lab.rules().splitlines())
    lab.configure(CONFIG)
    lab.nfknock("apply")
    daemon = lab.daemon()
    strangers = [Stranger(lab, command) for command in COMMANDS]
    began_at = time.monotonic()
    with beside(*(stranger.work for stranger in strangers)):
        knock_in_turn(lab, sources, SEQUENCE)
        daemon.wait_for(": ssh: opened", count=HOLES, within=30)
        assert {rule.source for rule in owned_holes(lab.rules(), DOORS, sources)} == set(sources)
        random.Random(SEED).shuffle(sources)
        knock_in_turn(lab, sources, CLOSING)
        daemon.wait_for(": ssh: closed", count=HOLES, within=30)
        wait_until(lambda: time.monotonic() > began_at + SECONDS, "the race to be over", within=2 * SECONDS)
    took = time.monotonic() - began_at
    assert hole_rules(lab.rules()) == []
    for stranger in strangers:
        say(f"in {took:.1f} s beside {HOLES} holes: {stranger.done}")
        stranger.check()
        assert min(stranger.done.values()) > SECONDS, "there was no race"
    lab.nfknock("remove")
    listed = set(lab.rules().splitlines())
    assert foreign <= listed
    assert not [line for line in listed if "nfknock" in line.lower() and line not in foreign]
