"""The backend nftables while others change their own rules: as often as it likes to read, or in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import count
from typing import Any

import pytest

from nfknock import netlink
from nfknock.backends import FirewallState
from nfknock.backends.nftables import NftablesBackend, elements, library, standing
from nfknock.config.baseline import read_baseline
from nfknock.core.model import Hole, Opening, Port
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, BusyError
from nfknock.host import nftread

PLAN = Plan(
    baseline=read_baseline(None),
    allowed=(),
    knock_ports=(Port(7101),),
    queue=5,
    reader="nflog",
    opens=(Port(22),),
)
# More than the kernel tells in a few parts.
MANY = 600


def hole(door: str = "ssh") -> Hole:
    now = time.time()
    opens = (Opening(Port(22)),)
    return Hole(door=door, source=ip_address("192.0.2.2"), opens=opens, opened_at=now, closes_at=now + 900)


@pytest.fixture
def backend(namespace: None) -> NftablesBackend:
    """Return the backend in place, in a host that drops what it does not know and has a rule for each ban."""
    bans = "".join(f"ip saddr 10.0.{number // 250}.{number % 250} drop\n" for number in range(MANY))
    chain = f"type filter hook input priority filter; policy drop; ct state established accept\n{bans}"
    library.run(f"table inet host {{ set banned {{ type ipv4_addr; }}; chain input {{ {chain} }}; }}")
    made = NftablesBackend()
    made.apply(PLAN)
    return made


def change_while_it_is_read(monkeypatch: pytest.MonkeyPatch, *, every: int = 1, times: int = 100_000) -> None:
    """Have the host ban somebody with every so many parts of answers that are read, at most so many times."""
    real, parts = netlink._messages, count(1)

    def messages(raw: bytes) -> Iterator[bytes | None]:
        part = next(parts)
        if part % every == 0 and part // every <= times:
            library.run(f"add element inet host banned {{ 10.9.{part // 250 % 250}.{part % 250} }}")
        return real(raw)

    monkeypatch.setattr(netlink, "_messages", messages)


def open_doors(backend: NftablesBackend) -> None:
    # An ordinary user's transactions have to be small.
    for first in range(0, MANY, 50):
        backend.open(hole(f"door-number-{number}") for number in range(first, first + 50))


def test_a_hole_does_not_wait_for_the_host_s_rules_to_hold_still(
    backend: NftablesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_while_it_is_read(monkeypatch, every=6)
    with pytest.raises(BackendError, match="changed meanwhile"):
        standing.read()
    # The first one of its door makes a set as well.
    backend.open([hole()])
    backend.open([replace(hole(), source=ip_address("192.0.2.3"))])
    assert len(backend.holes()) == 2


def test_a_hole_is_not_opened_behind_an_entrance_that_is_gone(backend: NftablesBackend) -> None:
    library.run("insert rule inet host input tcp dport 22 drop")
    with pytest.raises(BackendError, match="not in place"):
        backend.open([hole()])


def test_sets_that_change_while_they_are_listed_are_listed_again(
    backend: NftablesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_doors(backend)
    change_while_it_is_read(monkeypatch, times=1)
    assert len(elements.names()) == MANY


def test_what_changes_all_the_time_is_something_to_try_again(
    backend: NftablesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_doors(backend)
    change_while_it_is_read(monkeypatch)
    with pytest.raises(BusyError, match="reading holes of nf_tables: changed meanwhile"):
        elements.names()


def test_chains_and_rules_are_those_of_one_ruleset(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is loaded between the two: by its policy the chain would have the last word, and accept."""

    def load(policy: str, rule: str) -> None:
        chain = f"type filter hook input priority filter; policy {policy}; {rule};"
        library.run(f"add table inet host\ndelete table inet host\ntable inet host {{ chain input {{ {chain} }}; }}")

    def ask(kind: int, *about: Any) -> Any:
        if kind == nftread._GET_RULE and not loaded:
            loaded.append(None)
            load("accept", "counter")
        return real(kind, *about)

    load("drop", "tcp dport 443 accept")
    loaded: list[None] = []
    real = nftread._ask
    monkeypatch.setattr(nftread, "_ask", ask)
    backend = NftablesBackend()
    backend.apply(PLAN)
    assert loaded
    assert backend.state(PLAN) == FirewallState(policy={"ipv4": "DROP", "ipv6": "DROP"}, damage=())
