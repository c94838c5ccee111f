"""SIGKILL at a random moment, while many knock and holes open and close: what is left is right, and is taken up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nfknock.config.baseline import read_baseline
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import Plan
from tests.kernel.crowd import HoleRule, Watch, beside, hit, move_in, owned_holes, put_foreign_rules, say
from tests.lab import CLIENT4, CLIENT6, READER, Daemon, Lab, make_backend, wait_until

ROUNDS = 100 if "NFKNOCK_TEST_ALL" in os.environ else 8
SEED = 20261121
CLIENTS = 20
LONGEST_LIFE = 1.2
TOLERANCE = 1.0
# The kernel compares with the second that it noted at its last tick, and a busy machine ticks late.
TICK = 0.1
CONFIG = """
[doors.quick]
sequence = ["7101", "7102/udp"]
open = ["22/tcp", "53/udp"]
open_timeout = "1s"
[doors.slow]
sequence = ["6101/udp", "6102", "6103/udp"]
open = ["2222/tcp"]
open_timeout = "1.5s"
close_sequence = ["6103/udp", "6102"]
[doors.steady]
sequence = ["5101", "5102/udp"]
open = ["3333/tcp"]
open_timeout = "120s"
close_sequence = ["5102/udp", "5101"]
"""
DOORS = {
    "quick": frozenset({Port(22), Port(53, "udp")}),
    "slow": frozenset({Port(2222)}),
    # Its holes outlive the start of a daemon, however busy the machine is; nobody waits for their end.
    "steady": frozenset({Port(3333)}),
}
KNOCKS = {
    "quick": (Port(7101), Port(7102, "udp")),
    "slow": (Port(6101, "udp"), Port(6102), Port(6103, "udp")),
    "slow, shut": (Port(6103, "udp"), Port(6102)),
    "steady": (Port(5101), Port(5102, "udp")),
}
SHUT_STEADY = (Port(5102, "udp"), Port(5101))


class Bastion:
    """A host with rules of its own, its daemon, and twenty clients."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab = lab
        self.chance = chance
        self.sources = move_in(lab, CLIENTS)
        put_foreign_rules(lab)
        self.foreign = lab.rules()
        lab.configure(CONFIG)
        lab.nfknock("apply")
        self.applied = lab.rules()
        self.latest = self.earliest = -TOLERANCE
        """How long after its end a hole was answered, and how long before it was not, at most, in seconds."""
        self.seen = dict.fromkeys(("killed open", "adopted", "watched answering", "closed before"), 0)

    @contextlib.contextmanager
    def knocking(self) -> Iterator[None]:
        """Let the clients knock, one after the other in a random order, without a pause worth mentioning."""
        chance = random.Random(self.chance.random())

        def knock(enough: threading.Event) -> None:
            with self.lab.client.here():
                while not enough.wait(0.002):
                    hit(chance.choice(self.sources), KNOCKS[chance.choice(list(KNOCKS))])

        with beside(knock):
            yield

    def holes(self) -> list[HoleRule]:
        return owned_holes(self.lab.rules(), DOORS, self.sources)

    def wait_until_swept(self) -> None:
        """Wait until no hole is left; those that would last are shut by their owners."""

        def is_swept() -> bool:
            left = self.holes()
            with self.lab.client.here():
                for rule in left:
                    if rule.door == "steady":
                        hit(rule.source, SHUT_STEADY)
            return not left

        wait_until(is_swept, "every hole's rule to be swept")


@pytest.fixture
def bastion(lab: Lab) -> Bastion:
    say(f"seed {SEED}")
    return Bastion(lab, random.Random(SEED))


def test_a_daemon_that_is_killed_at_any_moment_leaves_what_is_right(bastion: Bastion) -> None:
    daemon = Daemon(bastion.lab.bastion).__enter__()
    try:
        for number in range(ROUNDS):
            say(f"round {number}")
            kill_at_a_random_moment(bastion, daemon)
            daemon.__exit__()
            daemon = take_up(bastion, at_once=number % 2 == 0)
            bastion.wait_until_swept()
            remove_and_apply(bastion)
    finally:
        daemon.__exit__()
    say(f"{bastion.seen}; answered up to {bastion.latest:.3f} s late, unanswered {bastion.earliest:.3f} s early")
    for what, count in bastion.seen.items():
        assert count >= ROUNDS / 8, f"hardly ever: {what}; {bastion.seen}"


def kill_at_a_random_moment(bastion: Bastion, daemon: Daemon) -> None:
    with bastion.knocking():
        time.sleep(bastion.chance.uniform(0, LONGEST_LIFE))
        daemon.signal(signal.SIGKILL)
        daemon.process.wait()
    bastion.seen["closed before"] += sum("slow: closed after" in line for line in daemon.lines)


def take_up(bastion: Bastion, *, at_once: bool) -> Daemon:
    """Start the next daemon, and see that what ends soon does when its rule says, with it or by the kernel alone."""
    left = bastion.holes()
    bastion.seen["killed open"] += bool(left)
    ending = [rule for rule in left if rule.port.protocol == "tcp" and rule.door != "steady"]
    watch = Watch((rule.source, rule.port.number) for rule in ending)
    with watching(bastion.lab, watch):
        daemon = adopt(bastion, left) if at_once else None
    bastion.seen["watched answering"] += len(watch.last_answered)
    try:
        for rule in ending:
            check_end(bastion, watch, rule)
    except BaseException:
        if daemon is not None:
            daemon.__exit__()
        raise
    return daemon or adopt(bastion, left)


def adopt(bastion: Bastion, left: list[HoleRule]) -> Daemon:
    """Start a daemon and see that it adopts what is live."""
    daemon = Daemon(bastion.lab.bastion).__enter__()
    try:
        ready_at = time.time()
        standing = bastion.holes()
        looked_at = time.time()
        live = {rule for rule in left if rule.closes_at is not None and rule.closes_at > looked_at}
        assert live <= set(standing) <= set(left)
        check_adopted(daemon, left, ready_at)
    except BaseException:
        daemon.__exit__()
        raise
    bastion.seen["adopted"] += bool(live)
    return daemon


@contextlib.contextmanager
def watching(lab: Lab, watch: Watch) -> Iterator[None]:
    """Watch from a thread of its own while the block runs, and then to the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with lab.client.here():
                watch.until_shut(within=15)
        except BaseException as exc:  # noqa: BLE001  (raised again below)
            failures.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def check_adopted(daemon: Daemon, left: list[HoleRule], ready_at: float) -> None:
    """It says how many it adopted: all that were live when it was ready, and none that had not been there."""
    holes = {(rule.door, rule.source): rule.closes_at or 0.0 for rule in left}
    live = sum(closes_at > ready_at for closes_at in holes.values())
    said = [int(line.split()[1]) for line in daemon.lines if line.startswith("adopted ")]
    assert live <= sum(said) <= len(holes), (live, daemon.lines, holes)


def check_end(bastion: Bastion, watch: Watch, rule: HoleRule) -> None:
    hole = (rule.source, rule.port.number)
    assert rule.closes_at is not None
    late = watch.last_answered.get(hole, 0.0) - rule.closes_at
    early = rule.closes_at - watch.first_unanswered[hole]
    bastion.latest, bastion.earliest = max(bastion.latest, late), max(bastion.earliest, early)
    assert late <= TOLERANCE + TICK, f"{rule} was answered {late:.3f} s after its end"
    assert early <= TOLERANCE, f"{rule} was not answered {early:.3f} s before its end"


def remove_and_apply(bastion: Bastion) -> None:
    lab = bastion.lab
    assert lab.rules() == bastion.applied
    lab.nfknock("remove")
    assert lab.rules() == bastion.foreign
    lab.nfknock("apply")
    assert lab.rules() == bastion.applied


@pytest.mark.parametrize("source", [CLIENT4, CLIENT6])
@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.0009, 0.001, 0.5, 0.9999, 0.9999999])
def test_a_hole_is_taken_up_whatever_fraction_of_a_second_it_ends_at(
    namespace: None, source: str, fraction: float
) -> None:
    """The comment has milliseconds, the rule's date seconds: both are to be of the same moment."""
    now = float(int(time.time()))
    backend = make_backend(lambda: now)
    backend.apply(Plan(baseline=read_baseline(None), allowed=(), knock_ports=KNOCKS["quick"], queue=5, reader=READER))
    opens = tuple(map(Opening, sorted(DOORS["quick"])))
    hole = Hole(door="quick", source=ip_address(source), opens=opens, opened_at=now, closes_at=now + 30 + fraction)
    backend.open([hole])
    assert backend.clear_out({"quick": frozenset(opens)}) == ([], backend.holes())
    [adopted] = backend.holes()
    assert adopted.closes_at == pytest.approx(hole.closes_at, abs=0.0011)
