"""Who is sure to reach what, by a plan and its doors."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from nfknock.core.model import Door, OneTimeSequences, Opening, Port, Rule
from nfknock.core.plan import Plan
from nfknock.core.reach import Visitor, Way, way_in

SSH = Port(22)
LOOPBACK = Rule(comment="loopback", interface="lo")
SESSIONS = Rule(comment="sessions", states=("ESTABLISHED", "RELATED"))
DOOR = Door(name="ssh", sequence=(Port(7101), Port(8203, "udp"), Port(9307)), opens=(Opening(SSH),))


def plan(*allowed: Rule, baseline: tuple[Rule, ...] = (LOOPBACK, SESSIONS), interfaces: tuple[str, ...] = ()) -> Plan:
    return Plan(baseline=baseline, allowed=allowed, knock_ports=(), queue=5, interfaces=interfaces)


def allow(source: str | None = None, interface: str | None = None, port: int | None = 22) -> Rule:
    return Rule(
        comment="allow",
        protocol="tcp" if port else None,
        ports=(port,) if port else (),
        source=ip_network(source) if source else None,
        interface=interface,
    )


def visitor(source: str = "192.0.2.2", interface: str | None = "eth0", port: Port = SSH) -> Visitor:
    return Visitor(source=ip_address(source), port=port, interface=interface)


@pytest.mark.parametrize(
    ("rules", "who", "way"),
    [
        ((), visitor(), None),
        ((allow(),), visitor(), "allow"),
        ((allow(),), visitor("2001:db8::2"), "allow"),
        ((allow(),), visitor(port=Port(22, "udp")), None),
        ((allow(port=2222),), visitor(), None),
        ((allow("192.0.2.0/24"),), visitor(), "allow"),
        ((allow("198.51.100.0/24"),), visitor(), None),
        ((allow("2001:db8::/32"),), visitor(), None),
        ((allow("2001:db8::/32"),), visitor("2001:db8::2"), "allow"),
        ((allow("192.0.2.2", port=None),), visitor(), "allow"),
        ((allow(interface="eth0"),), visitor(), "allow"),
        ((allow(interface="eth+"),), visitor(), "allow"),
        ((allow(interface="tun0"),), visitor(), None),
        ((allow(interface="eth0"),), visitor(interface=None), None),
        ((), visitor("127.0.0.1", "lo"), "allow"),
        ((Rule(comment="from a port", protocol="tcp", source_port=22),), visitor(), None),
        ((Rule(comment="ban", verdict="drop", source=ip_network("192.0.2.2")), allow()), visitor(), None),
        ((Rule(comment="ban", verdict="drop", source=ip_network("192.0.2.3")), allow()), visitor(), "allow"),
        ((allow(), Rule(comment="ban", verdict="drop")), visitor(), "allow"),
        ((Rule(comment="ban", verdict="drop", interface="tun0"), allow()), visitor(interface=None), None),
        ((Rule(comment="invalid", verdict="drop", states=("INVALID",)), allow()), visitor(), "allow"),
        ((Rule(comment="new", protocol="tcp", ports=(22,), states=("NEW",)),), visitor(), "allow"),
    ],
)
def test_rules(rules: tuple[Rule, ...], who: Visitor, way: Way | None) -> None:
    assert way_in(plan(*rules), (), who) == way


def test_a_door_lets_in_whoever_can_knock() -> None:
    assert way_in(plan(), [DOOR], visitor()) == "door"
    assert way_in(plan(), [DOOR], visitor("2001:db8::2")) == "door"
    assert way_in(plan(), [DOOR], visitor(port=Port(2222))) is None


def test_a_door_counts_on_its_interfaces_alone() -> None:
    limited = plan(interfaces=("eth+",))
    assert way_in(limited, [DOOR], visitor()) == "door"
    assert way_in(limited, [DOOR], visitor(interface="tun0")) is None
    assert way_in(limited, [DOOR], visitor(interface=None)) is None


def test_a_banned_source_has_no_door() -> None:
    ban = Rule(comment="ban", verdict="drop", source=ip_network("192.0.2.2"))
    assert way_in(plan(baseline=(LOOPBACK, ban)), [DOOR], visitor()) is None


def test_a_door_whose_sequences_are_used_up_is_none() -> None:
    empty = Door(name="ssh", one_time=OneTimeSequences(path="/x"), opens=(Opening(SSH),))
    left = Door(
        name="ssh", one_time=OneTimeSequences(path="/x", window=(DOOR.sequence,), left=1), opens=(Opening(SSH),)
    )
    assert way_in(plan(), [empty], visitor()) is None
    assert way_in(plan(), [left], visitor()) == "door"


@pytest.mark.parametrize(
    ("found", "doors", "way"),
    [
        (plan(), (), None),
        (plan(), (DOOR,), "door"),
        (plan(interfaces=("tun0",)), (DOOR,), "door"),
        (plan(allow()), (), "allow"),
        (plan(allow("0.0.0.0/0")), (), None),
        (plan(allow("192.0.2.0/24")), (), None),
        (plan(allow(interface="eth0")), (), None),
        (plan(Rule(comment="ban", verdict="drop", source=ip_network("192.0.2.2"))), (DOOR,), "door"),
        (plan(Rule(comment="ban", verdict="drop")), (DOOR,), None),
    ],
)
def test_anybody(found: Plan, doors: tuple[Door, ...], way: Way | None) -> None:
    """Who is not known gets in by what lets in every source."""
    assert way_in(found, doors, Visitor(source=None, port=SSH)) == way
