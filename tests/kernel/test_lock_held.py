"""Another process keeps the xtables lock, for longer than commands wait for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nfknock.core.model import Port
from tests.kernel.crowd import delivered, hit, move_in, owned_holes, say
from tests.lab import BASTION4, BASTION6, Lab
from tests.setting import only_for

HELD, ANSWERS = (10.0, ("drop", "reject")) if "NFKNOCK_TEST_ALL" in os.environ else (3.0, ("drop",))
LONGEST = 12.0
SOURCES = 8
SEQUENCE = (Port(7101), Port(8203, "udp"), Port(9307))
CLOSING = (Port(9307), Port(8203, "udp"))
CONFIG = """
[reader]
answer = "{answer}"
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "60s"
close_sequence = ["9307", "8203/udp"]
"""
DOORS = {"ssh": frozenset({Port(22)})}


def status(lab: Lab) -> tuple[float, dict[str, Any]]:
    """Return how many seconds `status` took, and what it said."""
    began_at = time.monotonic()
    report = json.loads(lab.nfknock("status", "--json").stdout)
    return time.monotonic() - began_at, dict(report)


def reaches(lab: Lab, source: str) -> bool:
    return lab.reaches(BASTION6 if ":" in source else BASTION4, 22, source=source)


def is_shut(lab: Lab, source: str) -> bool:
    return lab.is_shut(BASTION6 if ":" in source else BASTION4, 22, source=source)


def knock(lab: Lab, sources: list[str], sequence: tuple[Port, ...]) -> None:
    with lab.client.here():
        for source in sources:
            hit(source, sequence)


@contextlib.contextmanager
def lock_held(lab: Lab) -> Iterator[float]:
    """Let another process hold the lock while the block runs, which is told since when (`time.monotonic`)."""
    command = ["flock", lab.environment["XTABLES_LOCKFILE"], "sh", "-c", "echo held; read -r line"]
    holder = lab.bastion.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        yield time.monotonic()
    finally:
        holder.communicate("\n", timeout=30)


@only_for("iptables", "ipset")
@pytest.mark.parametrize("answer", ANSWERS)
def test_knocks_wait_for_a_lock_that_is_held(lab: Lab, answer: str) -> None:
    sources = move_in(lab, SOURCES)
    come, go = sources[: SOURCES // 2], sources[SOURCES // 2 :]
    for port in (22, 7101):
        # Behind a knock port as well: a knock that is let through is to find somebody.
        lab.serve(port)
    lab.configure(CONFIG.format(answer=answer))
    lab.nfknock("apply")
    daemon = lab.daemon()
    knock(lab, go, SEQUENCE)
    daemon.wait_for(": ssh: opened", count=len(go))
    usual = min(status(lab)[0] for _ in range(3))
    before = delivered(lab.bastion)
    with lock_held(lab) as held_at:
        knock(lab, come, SEQUENCE)
        knock(lab, go, CLOSING)
        daemon.wait_for("OPEN SESAME", count=SOURCES)
        daemon.wait_for("CLOSE SESAME", count=len(go))
        # One of each family.
        assert all(is_shut(lab, source) for source in come[:2])
        watch_status(lab, usual)
        assert delivered(lab.bastion) == before, "a knock was let through"
        assert not [line for line in daemon.lines if "not opened" in line or "closed after" in line]
        time.sleep(max(0.0, held_at + HELD - time.monotonic()))
        kept_until = time.time()
    free_at = time.monotonic()
    daemon.wait_for(": ssh: opened", count=SOURCES)
    daemon.wait_for(": ssh: closed", count=len(go))
    say(f"{answer}: all done {time.monotonic() - free_at:.2f} s after the lock was free")
    opened = {rule.source: rule.closes_at for rule in owned_holes(lab.rules(), DOORS, sources)}
    assert opened.keys() == set(come)
    # Whoever kept the lock has shortened nobody's time.
    assert all(closes_at and closes_at >= kept_until + 59.9 for closes_at in opened.values()), (opened, kept_until)
    assert all(reaches(lab, source) for source in come)
    assert all(is_shut(lab, source) for source in go)
    counters = status(lab)[1]["daemon"]
    knocks = SOURCES * len(SEQUENCE) + len(go) * len(CLOSING)
    assert [counters[name] for name in ("knocks", "lost", "opened", "closed")] == [knocks, 0, SOURCES, len(go)]


def watch_status(lab: Lab, usual: float) -> None:
    """Ask for the status again and again. On a quiet machine it takes less than a second, held lock or not."""
    took: list[float] = []
    began_at = time.monotonic()
    # On a busy one no single answer says much: there are more of them, for as long as the daemon keeps its knocks.
    while (so_far := time.monotonic() - began_at) < HELD - 2 or (min(took) >= 1 and so_far < LONGEST):
        seconds, report = status(lab)
        took.append(round(seconds, 2))
        assert report["daemon"]["running"], report
        assert report["firewall"]["applied"], report
        # What cannot be written yet is not claimed: what was open is open, what was knocked for is not.
        assert len(report["holes"]) == SOURCES // 2
    say(f"status took {usual:.2f} s before, {took} s meanwhile")
    assert min(took) < max(1.0, 2 * usual)
