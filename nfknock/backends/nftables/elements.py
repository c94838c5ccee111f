"""Holes as elements of sets: a set for each door, family and kind, so that two doors may open the same to one source.

Set names: `h4_ssh` has the IPv4 sources that may reach this host by the door ssh, `f6_db` the IPv6 ones that may reach
hosts behind. nft has no hyphens in names; there it is a slash, which door names do not have. Elements are written and
read by netlink: libnftables reads whole sets before it looks at one element.
"""

from __future__ import annotations

import contextlib
import errno
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address, IPv6Address

from nfknock import netlink
from nfknock.backends.labels import counted_end, label_of, read_label
from nfknock.backends.nftables import library
from nfknock.backends.nftables.layout import TABLE
from nfknock.core.model import PROTOCOL_NUMBERS, Hole, IPAddress, Opening, Port, Protocol
from nfknock.errors import BackendError
from nfknock.netlink import attribute, attributes

# linux/netfilter/nf_tables.h
_SUBSYSTEM = 10
_GET_SET, _NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = 10, 12, 13, 14
_INET = 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_KEY, _FLAGS, _TIMEOUT, _LEFT, _USERDATA, _EXPRESSION, _KEY_END, _EXPRESSIONS = 1, 3, 4, 5, 6, 7, 10, 12
_NAMED_BY = (_KEY, _KEY_END, _FLAGS)
_COMMENT_TYPE = 0
_SET_DESCRIPTION, _SET_SIZE = 9, 1
# A protocol and a port, each in a register of its own.
_PORT_SIZE = 8
_ATTEMPTS = 5
_PROTOCOLS: dict[int, Protocol] = {code: name for name, code in PROTOCOL_NUMBERS.items()}
_TYPES: dict[str, str] = {"4": "ipv4_addr", "6": "ipv6_addr"}
_ADDRESSES: dict[int, type[IPAddress]] = {4: IPv4Address, 6: IPv6Address}


@dataclass(frozen=True, slots=True)
class Name:
    """A set: whose it is, for which family, and whether its holes lead to hosts behind this one."""

    door: str
    version: int
    is_behind: bool

    @classmethod
    def of(cls, hole: Hole, opening: Opening) -> Name:
        """Return the set that a part of a hole is in."""
        return cls(hole.door, hole.source.version, opening.to is not None)

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """Return the set of that name, None if it is none of ours."""
        kind, version, rest = text[:1], text[1:2], text[2:]
        if kind not in ("h", "f") or version not in _TYPES or not rest.startswith("_"):
            return None
        return cls(rest[1:].replace("/", "-"), int(version), kind == "f")

    def __str__(self) -> str:
        return f"{'f' if self.is_behind else 'h'}{self.version}_{self.door.replace('-', '/')}"

    @property
    def type(self) -> str:
        """What its elements are, in nft's words."""
        address = _TYPES[str(self.version)]
        return " . ".join((address, *([address] if self.is_behind else []), "inet_proto", "inet_service"))

    @property
    def match(self) -> str:
        """What a packet is looked up by, in nft's words."""
        address = "ip" if self.version == 4 else "ip6"
        target = [f"{address} daddr"] if self.is_behind else []
        return " . ".join((f"{address} saddr", *target, "meta l4proto", "th dport"))


def names() -> list[Name]:
    """Return the sets that are there. Raises BackendError."""
    return list(sizes())


def sizes() -> dict[Name, int]:
    """Return how many elements each set may have. Raises BackendError."""
    question = attribute(_LIST_TABLE, TABLE.encode() + b"\0")
    found = {}
    for answer in _ask(_GET_SET, question):
        content = dict(attributes(answer, 4))
        name = Name.parse(netlink.text(content[2])) if netlink.text(content.get(1, b"")) == TABLE else None
        if name is not None:
            about = dict(attributes(content.get(_SET_DESCRIPTION, b"")))
            found[name] = netlink.number(about.get(_SET_SIZE, b""))
    return found


def read(name: Name, now: float = math.inf) -> Iterator[Hole]:
    """Yield every part of a hole in a set; what is no hole of ours is passed over. Raises BackendError.

    Each ends when it says, or, beyond doubt, when the kernel takes it away, by how much is left at `now`.
    """
    for raw in _read_all(name):
        if hole := _part(name, dict(attributes(raw)), now):
            yield hole


def take_out_others(name: Name, now: float = math.inf) -> tuple[int, list[Hole]]:
    """Take out what is no hole of ours, or ends at another time than it says.

    Returns how many, and the parts of holes that stay, as `read` does. Raises BackendError.
    """
    parts: list[Hole] = []
    others: list[bytes] = []
    for raw in _read_all(name):
        content = dict(attributes(raw))
        part = _part(name, content, now)
        if part is None or (part.closes_at is None) != (_TIMEOUT not in content):
            others.append(_named(raw))
        else:
            parts.append(part)
    for other in others:
        # Its time may have been over just now.
        with contextlib.suppress(FileNotFoundError):
            _write([(_DELETE_ELEMENT, name, other)])
    return len(others), parts


def _named(raw: bytes) -> bytes:
    """Return what an element is told from others by; one that stands for all the rest has no key but a flag."""
    return b"".join(
        attribute(kind | netlink.NESTED * (kind != _FLAGS), content)
        for kind, content in attributes(raw)
        if kind in _NAMED_BY
    )


def _read_all(name: Name) -> list[bytes]:
    # While the kernel gives its table another size, as after many changes, some elements are passed over or told twice,
    # and nothing says so (seen on Linux 6.18). Twice the same ones is all of them.
    found = {_key_of(raw): raw for raw in _dump(name)}
    for _attempt in range(_ATTEMPTS):
        before, found = found, {_key_of(raw): raw for raw in _dump(name)}
        if found.keys() == before.keys():
            break
    return list(found.values())


def _key_of(raw: bytes) -> bytes:
    """Return an element's key, which stands first; what has none is told from others by what names it."""
    kind, content = netlink.first(raw)
    return content if kind == _KEY else _named(raw)


def _dump(name: Name) -> list[bytes]:
    return [
        raw
        for answer in _ask(_GET_ELEMENT, _list(name))
        for kind, listed in attributes(answer, 4)
        if kind == _LIST_ELEMENTS
        for _kind, raw in attributes(listed)
    ]


def find(name: Name, source: IPAddress, opening: Opening, now: float) -> Hole | None:
    """Return that part of a hole, None if it is not there, or no such set. Raises BackendError."""
    question = _list(name, attribute(1, attribute(_KEY, _key(source, opening))))
    try:
        for answer in _ask(_GET_ELEMENT, question, flags=0):
            for kind, listed in attributes(answer, 4):
                if kind == _LIST_ELEMENTS:
                    for _kind, raw in attributes(listed):
                        return _part(name, dict(attributes(raw)), now)
    except FileNotFoundError:
        pass
    return None


def joined(parts: Iterable[Hole]) -> list[Hole]:
    """Return the holes that these parts make up."""
    found: dict[tuple[str, IPAddress], Hole] = {}
    for part in parts:
        key = part.key
        known = found.setdefault(key, part)
        if known is not part:
            opens = (*known.opens, *(each for each in part.opens if each not in known.opens))
            opens = tuple(sorted(opens, key=_order))
            found[key] = replace(
                known, opens=opens, packets=known.packets + part.packets, bytes=known.bytes + part.bytes
            )
    return list(found.values())


def _order(opening: Opening) -> tuple[bool, str, Protocol, int]:
    return opening.to is not None, str(opening.to), opening.port.protocol, opening.port.number


def write(gone: Iterable[Hole], new: Iterable[Hole], now: float) -> None:
    """Take out these holes' elements, which are there, and put in those, all or none.

    Raises FileNotFoundError where a set or an element is missing, FileExistsError where an element is there already,
    BackendError for anything else.
    """
    changes = []
    for hole in gone:
        changes += [
            (_DELETE_ELEMENT, Name.of(hole, each), attribute(_KEY, _key(hole.source, each))) for each in hole.opens
        ]
    for hole in new:
        about = _timeout(hole, now) + attribute(_USERDATA, _comment(label_of(hole)))
        # A renewed hole goes on counting; which of its elements had counted what is not worth a line.
        counted = _counted(hole)
        for each in hole.opens:
            element = attribute(_KEY, _key(hole.source, each)) + about + counted
            changes.append((_NEW_ELEMENT, Name.of(hole, each), element))
            counted = b""
    _write(changes)


def _write(changes: Iterable[tuple[int, Name, bytes]]) -> None:
    messages = [
        (_SUBSYSTEM << 8 | kind, struct.pack("=BBH", _INET, 0, 0) + _list(name, attribute(1, element)))
        for kind, name, element in changes
    ]
    if not messages:
        return
    try:
        netlink.write(_SUBSYSTEM, messages)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as exc:
        if exc.errno == errno.ENFILE:
            mend = "raise `set_size` under [firewall] and run `nfknock apply`, or close some"
            raise BackendError(f"a set of holes is full; {mend}") from exc
        raise BackendError(f"writing holes by nf_tables: {library.reason(exc)}") from exc


def words(hole: Hole, opening: Opening, now: float, *, is_counted: bool) -> str:
    """Return one element of a hole in nft's language; `is_counted` if it is the one that has the hole's counters."""
    target = [str(opening.to)] if opening.to else []
    key = " . ".join((str(hole.source), *target, opening.port.protocol, str(opening.port.number)))
    counter = f"counter packets {hole.packets} bytes {hole.bytes} " if is_counted else ""
    timeout = "" if hole.closes_at is None else f"timeout {_milliseconds(hole.closes_at, now)}ms "
    return f'{key} {counter}{timeout}comment "{label_of(hole)}"'


def _timeout(hole: Hole, now: float) -> bytes:
    if hole.closes_at is None:
        return b""
    return attribute(_TIMEOUT, struct.pack("!Q", _milliseconds(hole.closes_at, now)))


def _milliseconds(closes_at: float, now: float) -> int:
    return max(1, round((closes_at - now) * 1000))


def _counted(hole: Hole) -> bytes:
    if not (hole.packets or hole.bytes):
        return b""
    counts = attribute(1, struct.pack("!Q", hole.bytes)) + attribute(2, struct.pack("!Q", hole.packets))
    counter = attribute(1, b"counter\0") + attribute(2 | netlink.NESTED, counts)
    return attribute(_EXPRESSION | netlink.NESTED, counter)


def _comment(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("BB", _COMMENT_TYPE, len(raw)) + raw


def _list(name: Name, elements: bytes = b"") -> bytes:
    about = attribute(_LIST_TABLE, TABLE.encode() + b"\0") + attribute(_LIST_SET, str(name).encode() + b"\0")
    return about + (attribute(_LIST_ELEMENTS | netlink.NESTED, elements) if elements else b"")


def _key(source: IPAddress, opening: Opening) -> bytes:
    target = opening.to.packed if opening.to else b""
    rest = struct.pack("!B3xH2x", PROTOCOL_NUMBERS[opening.port.protocol], opening.port.number)
    return attribute(1, source.packed + target + rest)


def _part(name: Name, content: dict[int, bytes], now: float) -> Hole | None:
    userdata = content.get(_USERDATA, b"")
    if len(userdata) < 2 or userdata[0] != _COMMENT_TYPE:
        return None
    label = read_label(userdata[2 : 1 + userdata[1]].decode(errors="replace"))
    _kind, key = netlink.first(content.get(_KEY, b""))
    size = 4 if name.version == 4 else 16
    addresses = 2 * size if name.is_behind else size
    # All the rest, or in a set of another type.
    if len(key) != addresses + _PORT_SIZE or _KEY_END in content:
        return None
    protocol = _PROTOCOLS.get(key[addresses])
    if label is None or protocol is None or label[0] != name.door:
        return None
    left = netlink.number(content[_LEFT]) / 1000 if _LEFT in content else None
    packets, octets = _counters(content)
    return Hole(
        door=name.door,
        source=_ADDRESSES[name.version](key[:size]),
        opens=(_opening(name.version, protocol, key[addresses + 4 : addresses + 6], key[size:addresses]),),
        opened_at=label[1],
        closes_at=counted_end(label[2], left, now),
        packets=packets,
        bytes=octets,
    )


@cache
def _opening(version: int, protocol: Protocol, port: bytes, behind: bytes) -> Opening:
    """Return what is opened; there are few of these, and thousands of elements."""
    return Opening(Port(netlink.number(port), protocol), _ADDRESSES[version](behind) if behind else None)


def _counters(content: dict[int, bytes]) -> tuple[int, int]:
    """Return packets and bytes, as the set's counter has them."""
    raw = content.get(_EXPRESSION) or netlink.first(content.get(_EXPRESSIONS, b""))[1]
    counted = netlink.find(raw, 2)
    return netlink.number(netlink.find(counted, 2)), netlink.number(netlink.find(counted, 1))


def _ask(kind: int, question: bytes, flags: int = netlink.DUMP) -> list[bytes]:
    body = struct.pack("=BBH", _INET, 0, 0) + question
    try:
        if flags & netlink.DUMP:
            return netlink.dump(netlink.NETFILTER, _SUBSYSTEM << 8 | kind, body)
        return list(netlink.ask(netlink.NETFILTER, _SUBSYSTEM << 8 | kind, body, flags))
    except FileNotFoundError:
        if not flags & netlink.DUMP:
            raise
        return []
    except OSError as exc:
        raise library.unreadable("holes of nf_tables", exc) from exc
