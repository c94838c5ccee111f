"""Ports whose packets are sent on to a container or another host: they never come by INPUT."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nfknock.core.model import PROTOCOL_NUMBERS, Port, Protocol
from nfknock.host import legacy
from nfknock.host.extensions import Match
from nfknock.host.nftread import Expression, Ruleset, value
from nfknock.netlink import number, text

_DNAT = 1
_LOOPBACK = 127
_PROTOCOLS: dict[int, Protocol] = {code: name for name, code in PROTOCOL_NUMBERS.items()}
_L4PROTO = 16
_EQUAL = 0


@dataclass(frozen=True, slots=True, order=True)
class Forward:
    """A port that is sent on, and whether it was Docker who wrote so."""

    port: Port
    is_docker: bool


def has_docker() -> bool:
    """Whether Docker seems to run here."""
    return Path("/var/run/docker.sock").exists() or Path("/sys/class/net/docker0").exists()


def forwards(ruleset: Ruleset | None) -> list[Forward]:
    """Return what is sent on, from the nat tables of both kinds. Raises OSError."""
    found = set(_from_nftables(ruleset) if ruleset else ())
    versions: tuple[legacy.Version, ...] = (4, 6)
    for version in versions:
        table = legacy.read("nat", version)
        found |= set(_from_legacy(table) if table else ())
    return sorted(found)


def _from_nftables(ruleset: Ruleset) -> Iterator[Forward]:
    for (_family, table, chain), rules in ruleset.rules.items():
        for rule in rules:
            if not any(_is_dnat(expression) for expression in rule.expressions):
                continue
            port = _port_of(rule.expressions)
            if port:
                yield Forward(port, _is_docker(table) or _is_docker(chain))


def _is_docker(name: str) -> bool:
    return "docker" in name.lower()


def _is_dnat(expression: Expression) -> bool:
    content = expression.content
    return (expression.name == "target" and text(content[1]) == "DNAT") or (
        expression.name == "nat" and number(content.get(1, b"")) == _DNAT
    )


def _port_of(expressions: Iterable[Expression]) -> Port | None:
    """Return the port that a rule is about, None if it is about none, several, or loopback alone."""
    protocol: Protocol | None = None
    port = 0
    loaded = ""
    for expression in expressions:
        content = expression.content
        match expression.name:
            case "meta" | "payload":
                loaded = _loads(expression)
            case "cmp" if number(content[2]) == _EQUAL:
                compared = value(content[3])
                protocol = _PROTOCOLS.get(compared[0]) if loaded == "protocol" else protocol
                port = number(compared) if loaded == "port" else port
                if loaded == "address" and compared[0] == _LOOPBACK:
                    return None
            case "match" if text(content[1]) in PROTOCOL_NUMBERS:
                port = _port_in(Match(text(content[1]), 0, content.get(3, b"")))
                protocol = "tcp" if text(content[1]) == "tcp" else "udp"
    return Port(port, protocol) if port and protocol else None


def _loads(expression: Expression) -> str:
    """Return what a rule compares next, as far as it matters here."""
    numbers = {key: number(each) for key, each in expression.content.items()}
    if expression.name == "meta":
        return "protocol" if numbers.get(2) == _L4PROTO else ""
    match numbers.get(2), numbers.get(3):
        case 2, 2:
            return "port"
        case 1, 16:
            return "address"
        case 1, 9:
            return "protocol"
        case _:
            return ""


def _from_legacy(table: legacy.Table) -> Iterator[Forward]:
    for at, rules in table.chains.items():
        for rule in rules:
            if rule.target != "DNAT" or rule.only_for_loopback:
                continue
            for each in rule.matches:
                if each.name in PROTOCOL_NUMBERS and (port := _port_in(each)):
                    yield Forward(
                        Port(port, "tcp" if each.name == "tcp" else "udp"), _is_docker(table.names.get(at, ""))
                    )


def _port_in(match: Match) -> int:
    """Return the one port here that a tcp or udp match is about, 0 if it is not one."""
    _low, _high, low, high = struct.unpack_from("=4H", match.info)
    return int(low) if low == high else 0
