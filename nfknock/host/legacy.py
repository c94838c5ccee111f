"""The host's legacy x_tables rulesets, read with the two getsockopt calls that the kernel has for it.

Not through python-iptables: it knows the filter table alone here, and asking it about rules makes the kernel create
every other table. Asking the kernel for a table that is not there creates it as well, so the list of those that are
is read first (linux/netfilter/x_tables.h, linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nfknock.host.extensions import PASSING, REFUSING, Match
from nfknock.host.probe import Answer, Field, Probe, every, negate
from nfknock.host.walk import Kind, Step, Walk

Version = Literal[4, 6]

_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES_AT = 40
_EXTENSION = struct.Struct("=H29sB")
_LOCAL_IN = 1
_ATTEMPTS = 5
_ACCEPT, _DROP, _RETURN = -2, -1, -5
_VERDICTS: dict[int, Kind] = {_ACCEPT: "accept", _DROP: "drop", _RETURN: "return"}
_LISTS = {4: "ip_tables", 6: "ip6_tables"}


@dataclass(frozen=True, slots=True)
class _Family:
    domain: socket.AddressFamily
    level: int
    address_size: int
    protocol_at: int
    """Then follow flags, of which `goto` is one, and what is inverted."""
    flags_at: int
    goto: int
    offsets_at: int
    size: int


_FAMILIES: dict[Version, _Family] = {
    4: _Family(socket.AF_INET, socket.IPPROTO_IP, 4, 80, 82, 2, 88, 112),
    6: _Family(socket.AF_INET6, socket.IPPROTO_IPV6, 16, 128, 131, 4, 140, 168),
}
# What the backends iptables and ipset have in INPUT, and how they note the policy that they found.
OWN_CHAINS = ("NFKNOCK", "NFKNOCK_STRAYS")
_FOUND: dict[Kind, str] = {"accept": "NFKNOCK_FOUND_ACCEPT", "drop": "NFKNOCK_FOUND_DROP"}
_INVERTED_INTERFACE, _INVERTED_SOURCE, _INVERTED_TARGET, _INVERTED_PROTOCOL = 1, 8, 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule as it stands in a table: its bytes, and what they say."""

    version: Version
    head: bytes
    matches: tuple[Match, ...]
    target: str
    """The target extension's name; empty for a verdict, or a jump."""
    info: bytes

    @property
    def verdict(self) -> int:
        """A verdict, or the place in the table that is jumped to."""
        return int(struct.unpack_from("=i", self.info)[0])

    @property
    def is_goto(self) -> bool:
        """Whether it jumps and does not come back."""
        family = _FAMILIES[self.version]
        return bool(self.head[family.flags_at] & family.goto)

    @property
    def only_for_loopback(self) -> bool:
        """Whether it is about packets to 127.0.0.0/8 alone."""
        return self.version == 4 and self.head[4] == 127 and self.head[12] == 0xFF

    def takes(self, probe: Probe) -> Answer:
        """Whether the packet meets every condition, None if that depends on what is not known."""
        return every(self._takes_head(probe), *(match.answer(probe) for match in self.matches))

    def _takes_head(self, probe: Probe) -> Answer:
        family, size = _FAMILIES[self.version], _FAMILIES[self.version].address_size
        inverted = self.head[family.flags_at + 1]
        address, mask = self.head[:size], self.head[2 * size : 3 * size]
        from_there = probe.source_field.masked(mask, bytes(size)).equals(address)
        here = Field.unknown(size).masked(self.head[3 * size : 4 * size], bytes(size))
        names = self.head[4 * size : 4 * size + 64]
        # Of `eth+` the plus stands there too, where the mask takes it away.
        named = bytes(n & m for n, m in zip(names[:16], names[32:48], strict=True))
        interface = Field.of(probe.interface.encode().ljust(16, b"\0")).masked(names[32:48], bytes(16))
        protocol = int(struct.unpack_from("=H", self.head, family.protocol_at)[0])
        return every(
            _flip(from_there, inverted & _INVERTED_SOURCE),
            _flip(here.equals(self.head[size : 2 * size]), inverted & _INVERTED_TARGET),
            _flip(interface.equals(named), inverted & _INVERTED_INTERFACE),
            _flip(protocol in (0, probe.protocol), inverted & _INVERTED_PROTOCOL),
            not any(names[48:64]),  # a packet for this host goes out nowhere
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table: each chain by its place, and the names of those that have one."""

    chains: dict[int, tuple[Rule, ...]]
    names: dict[int, str]
    hooks: tuple[int, ...]

    def ends(self, probe: Probe, *, without: Collection[str] = (), policy: Kind | None = None) -> frozenset[Kind]:
        """Return how a packet for this host may leave INPUT.

        Without the jumps to the chains of these names, and with another policy, if one is given.
        """
        start = self.hooks[_LOCAL_IN]
        chains = dict(self.chains)
        rules = [rule for rule in chains[start] if self._jumps_to(rule) not in without]
        # The last one of a built-in chain is its policy.
        chains[start] = tuple(rules[:-1] if policy else rules)
        ends = Walk(chains, lambda rule: _steps(rule, probe)).ends(start)
        return ends - {"return"} | {policy} if policy and "return" in ends else ends

    def ends_without_us(self, probe: Probe) -> frozenset[Kind]:
        """Return how a packet for this host would leave INPUT if nfknock had never changed it."""
        found = [policy for policy, name in _FOUND.items() if name in self.names.values()]
        return self.ends(probe, without=OWN_CHAINS, policy=found[0] if len(found) == 1 else None)

    def emptied(self, chain: str) -> Table:
        """Return this table as if the chain of that name had no rule."""
        chains = {at: rules[-1:] if self.names.get(at) == chain else rules for at, rules in self.chains.items()}
        return replace(self, chains=chains)

    def _jumps_to(self, rule: Rule) -> str:
        return "" if rule.target else self.names.get(rule.verdict, "")


def tables(version: Version) -> frozenset[str] | None:
    """Return the names of the tables that are there; None if the kernel has no such tables at all.

    Raises PermissionError.
    """
    try:
        return frozenset(Path("/proc/net", f"{_LISTS[version]}_names").read_text().split())
    except FileNotFoundError:
        return None


def read(name: str, version: Version) -> Table | None:
    """Return a table, None if it is not there. Raises OSError, above all PermissionError."""
    if name not in (tables(version) or ()):
        return None
    family = _FAMILIES[version]
    with socket.socket(family.domain, socket.SOCK_DGRAM) as asking:
        for _ in range(_ATTEMPTS):
            info = _INFO.unpack(_ask(asking, family.level, _GET_INFO, _INFO.pack(name.encode(), *[0] * 13)))
            hooks, size = info[2:7], info[13]
            head = struct.pack("=32sI", name.encode(), size).ljust(_ENTRIES_AT, b"\0")
            try:
                raw = _ask(asking, family.level, _GET_ENTRIES, head + bytes(size))[_ENTRIES_AT:]
            except BlockingIOError:
                continue  # somebody changed it between the two questions
            return _table(raw, hooks, version)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _ask(asking: socket.socket, level: int, option: int, question: bytes) -> bytes:
    """Call getsockopt with a question in the buffer, which Python's own has no way to give."""
    buffer, size = ctypes.create_string_buffer(question, len(question)), ctypes.c_uint32(len(question))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(asking.fileno(), level, option, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: size.value]


def _table(raw: bytes, hooks: tuple[int, ...], version: Version) -> Table:
    chains: dict[int, list[Rule]] = {}
    names: dict[int, str] = {}
    current: list[Rule] = []
    title = ""
    for at, rule in _rules(raw, version):
        if at in hooks or title:
            current = chains.setdefault(at, [])
            names.update({at: title} if title else {})
        # A chain's name stands in an entry in front of it.
        title = _text(rule.info) if rule.target == "ERROR" else ""
        if not title:
            current.append(rule)
    return Table(chains={at: tuple(rules) for at, rules in chains.items()}, names=names, hooks=hooks)


def _rules(raw: bytes, version: Version) -> Iterator[tuple[int, Rule]]:
    family, at = _FAMILIES[version], 0
    while at + family.size <= len(raw):
        target_at, size = struct.unpack_from("=HH", raw, at + family.offsets_at)
        entry = raw[at : at + size]
        *matches, target = _extensions(entry, family.size, target_at)
        info = target.info
        yield at, Rule(version=version, head=entry, matches=tuple(matches), target=target.name, info=info)
        at += size


def _extensions(entry: bytes, at: int, target_at: int) -> Iterator[Match]:
    """Yield every match of an entry, and in the end its target, which is built alike."""
    while at <= target_at:
        size, name, revision = _EXTENSION.unpack_from(entry, at)
        yield Match(_text(name), revision, entry[at + _EXTENSION.size : at + size])
        at += size


def _steps(rule: Rule, probe: Probe) -> Iterator[Step[int]]:
    takes = rule.takes(probe)
    if takes is False or rule.target in PASSING:
        return
    if not rule.target:
        verdict = rule.verdict
        kind: Kind = _VERDICTS.get(verdict) or ("goto" if rule.is_goto else "jump")
        yield Step(kind, verdict if verdict >= 0 else None, is_certain=bool(takes))
        return
    # A queue's program, or what is not known: it may do either.
    yield Step("drop", is_certain=bool(takes) and rule.target in REFUSING)
    if rule.target not in REFUSING:
        yield Step("accept", is_certain=False)


def _flip(answer: Answer, is_inverted: int) -> Answer:
    return negate(answer) if is_inverted else answer


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
