"""Whether a plan and its doors let somebody reach a port: what decides that `apply` would lock its caller out.

A rule of which it is not known whether it takes the visitor counts against them: an accept is none, a drop is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nfknock.core.model import Door, IPAddress, Port, Rule, family_of
from nfknock.core.plan import Plan

Way = Literal["allow", "door"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Somebody who begins a new connection.

    `interface` is where they come in, None if that is not known; a `source` of None is anybody, who gets in by
    what lets in every source, by doors on whatever interface, and though somebody else is kept out.
    """

    source: IPAddress | None
    port: Port
    interface: str | None = None


def way_in(plan: Plan, doors: Iterable[Door], visitor: Visitor) -> Way | None:
    """Return by what the visitor gets in, None if nothing is sure to let them in."""
    is_known = visitor.source is not None
    for rule in (*plan.baseline, *plan.allowed):
        takes = _takes(rule, visitor)
        if takes is False:
            continue
        if rule.verdict == "drop":
            if takes or is_known:
                return None
        elif takes:
            return "allow"
    if is_known and plan.interfaces and not any(_is_on(name, visitor.interface) for name in plan.interfaces):
        return None
    return "door" if any(_opens(door, visitor.port) for door in doors) else None


def _opens(door: Door, port: Port) -> bool:
    # A door whose one-time sequences are used up stays shut.
    return any(door.sequences) and port in door.opens_here


def _takes(rule: Rule, visitor: Visitor) -> bool | None:
    """Whether a rule takes the visitor's first packet, None if that cannot be told."""
    if rule.states and "NEW" not in rule.states:
        return False
    if visitor.source is not None and not rule.concerns(family_of(visitor.source)):
        return False
    if rule.protocol not in (None, visitor.port.protocol) or (rule.ports and visitor.port.number not in rule.ports):
        return False
    if visitor.source is None and (rule.source is not None or rule.family is not None):
        return None
    if rule.source is not None and visitor.source not in rule.source:
        return False
    on = True if rule.interface is None else _is_on(rule.interface, visitor.interface)
    # The visitor's own port is whatever their system gave them.
    return None if on and rule.source_port is not None else on


def _is_on(name: str, interface: str | None) -> bool | None:
    """Whether an interface bears a name as rules have it: `ppp+` is every one that begins so."""
    if interface is None:
        return None
    return interface.startswith(name[:-1]) if name.endswith("+") else interface == name
