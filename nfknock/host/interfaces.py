"""Where strangers come in."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from nfknock.core.model import IPAddress
from nfknock.netlink import ROUTE, ask, attribute, attributes

_RTM_GETROUTE = 26
_SOURCE_ATTRIBUTE, _TARGET_ATTRIBUTE, _OUT_ATTRIBUTE = 2, 1, 4
_MESSAGE = struct.Struct("=8BI")
LOOPBACK = "lo"


def names() -> list[str]:
    """Return the interfaces that there are, but for loopback."""
    return [name for _number, name in socket.if_nameindex() if name != LOOPBACK]


def matching(pattern: str, present: Iterable[str]) -> list[str]:
    """Return those that a name of a configuration means; `ppp+` is all that begin so."""
    return [name for name in present if (name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern)]


def entrances(wanted: Iterable[str]) -> list[tuple[str, int]]:
    """Return where packets of strangers come in: at those that are named, else where the Internet is, else anywhere.

    Each with its number; a name of which there is no interface yet stands for itself, with number 0.
    """
    numbers = {name: number for number, name in socket.if_nameindex() if name != LOOPBACK}
    if wanted := tuple(wanted):
        found = [name for each in wanted for name in matching(each, numbers) or [each.removesuffix("+")]]
    else:
        found = sorted(_with_default_route()) or [*numbers] or ["eth0"]
    return [(name, numbers.get(name, 0)) for name in found]


def _with_default_route() -> set[str]:
    found: set[str] = set()
    for fields in _lines("/proc/net/route"):
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            found.add(fields[0])
    for fields in _lines("/proc/net/ipv6_route"):
        if len(fields) > 9 and fields[0].strip("0") == "" and fields[1] == "00" and fields[9] != LOOPBACK:
            found.add(fields[9])
    return found


def _lines(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return []


def towards(address: IPAddress, own: IPAddress | None = None) -> str | None:
    """Return the interface at which packets to an address leave, which is where theirs come in; None if unknown."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    bits = address.max_prefixlen
    message = _MESSAGE.pack(family, bits, bits if own else 0, 0, 0, 0, 0, 0, 0)
    question = message + attribute(_TARGET_ATTRIBUTE, address.packed)
    if own:
        question += attribute(_SOURCE_ATTRIBUTE, own.packed)
    try:
        for answer in ask(ROUTE, _RTM_GETROUTE, question, flags=0):
            out = dict(attributes(answer, _MESSAGE.size)).get(_OUT_ATTRIBUTE)
            return socket.if_indextoname(struct.unpack("=I", out)[0]) if out else None
    except (OSError, struct.error):
        pass
    return None
