"""The values that everything else speaks in: ports, doors, holes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

Protocol = Literal["tcp", "udp"]
IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Family = Literal["ipv4", "ipv6"]

PROTOCOL_NUMBERS: dict[Protocol, int] = {"tcp": 6, "udp": 17}

# As knockd has it; a longer sequence could not be imported from there, and nobody has one.
LONGEST_SEQUENCE = 32

# The name stands in firewall comments (255 bytes for all of it) and in log lines, so it is one short word.
_DOOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def family_of(address: IPAddress | IPNetwork) -> Family:
    """Return "ipv4" or "ipv6"."""
    return "ipv4" if address.version == 4 else "ipv6"


def as_source(text: str) -> IPAddress:
    """Parse an address that somebody typed; `::ffff:192.0.2.2` is the IPv4 address that it stands for.

    Raises ValueError for anything else.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has a zone; the firewall knows addresses only")
        return address.ipv4_mapped or address
    return address


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """One transport port: a step of a sequence, or what a door opens."""

    number: int
    protocol: Protocol = "tcp"

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 65535:
            raise ValueError(f"port {self.number} is out of range (1 to 65535)")

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"

    @property
    def code(self) -> int:
        """Protocol and port in one integer: what the packet path compares."""
        return PROTOCOL_NUMBERS[self.protocol] << 16 | self.number

    @classmethod
    def parse(cls, text: str | int) -> Port:
        """Read `7101`, `"7101"`, `"7101/udp"` or knockd's `"7101:udp"`; without a protocol it is TCP.

        Raises ValueError that says what would be right.
        """
        number, _, protocol = str(text).replace(":", "/", 1).partition("/")
        number, protocol = number.strip(), protocol.strip().lower()
        bare = "/" not in str(text) and ":" not in str(text)
        if not (number.isascii() and number.isdigit()) or not (bare or protocol in PROTOCOL_NUMBERS):
            raise ValueError(f'{text!r} is not a port; write 7101, "7101/tcp" or "7101/udp"')
        # No port has more digits, and Python refuses to read very many.
        return cls(int(number.lstrip("0")[:6] or "0"), "udp" if protocol == "udp" else "tcp")


Sequence = tuple[Port, ...]
"""Knocks in their order."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a door opens: a port of this host, or the same on a host behind it."""

    port: Port
    to: IPAddress | None = None
    """The host behind; None is this one."""

    def __str__(self) -> str:
        return str(self.port) if self.to is None else f"{self.port} to {self.to}"

    def is_for(self, source: IPAddress) -> bool:
        """Whether a source can come here: a host behind is reached from addresses of its own family alone."""
        return self.to is None or self.to.version == source.version


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """Which TCP flags a knock must carry: those under `mask` must equal `value`.

    The notation is knockd's: `syn,!ack` wants SYN set and ACK clear, and does not care for the others.
    """

    mask: int
    value: int

    NAMES = ("fin", "syn", "rst", "psh", "ack", "urg")

    @classmethod
    def parse(cls, text: str) -> TcpFlags:
        """Read knockd's notation; an empty text accepts every TCP packet. Raises ValueError on an unknown name."""
        mask = value = 0
        for word in text.split(",") if text.strip() else ():
            name = word.strip().lower().removeprefix("!").strip()
            if name not in cls.NAMES:
                raise ValueError(
                    f"{word.strip()!r} is not a TCP flag; known are {', '.join(cls.NAMES)}, each also with !"
                )
            bit = 1 << cls.NAMES.index(name)
            if mask & bit:
                raise ValueError(f"the TCP flag {name!r} is named twice")
            mask |= bit
            value |= 0 if word.strip().startswith("!") else bit
        return cls(mask, value)

    def accepts(self, flags: int) -> bool:
        """Whether a packet with these flags (byte 13 of the TCP header) is a knock."""
        return flags & self.mask == self.value


BARE_SYN = TcpFlags.parse("syn,!ack,!fin,!rst")


def end_alike(one: Sequence, other: Sequence) -> bool:
    """Whether the last knock of one sequence can be the last knock of the other, with all that came before."""
    shorter = min(len(one), len(other))
    return bool(shorter) and one[-shorter:] == other[-shorter:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What a door runs: argument lists, in which `%IP%` stands for the source. Timeouts are in seconds.

    An IPv6 source has lists of its own where they are not None; an empty list runs nothing.
    """

    start: tuple[str, ...] = ()
    start6: tuple[str, ...] | None = None
    stop: tuple[str, ...] = ()
    stop6: tuple[str, ...] | None = None
    cmd_timeout: float | None = 10.0
    """From the knock to the stop command; None: until the closing sequence."""
    run_timeout: float = 60.0
    """How long a command may run before it is ended."""

    def start_for(self, source: IPAddress) -> tuple[str, ...]:
        """Return what is run when the door opens for a source."""
        return _for_source(self.start, self.start6, source)

    def stop_for(self, source: IPAddress) -> tuple[str, ...]:
        """Return what is run when that is over."""
        return _for_source(self.stop, self.stop6, source)


def _for_source(command: tuple[str, ...], command6: tuple[str, ...] | None, source: IPAddress) -> tuple[str, ...]:
    chosen = command6 if source.version == 6 and command6 is not None else command
    return tuple(argument.replace("%IP%", str(source)) for argument in chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTimeSequences:
    """A file of sequences that count once each, and what of it counts now."""

    path: str
    look_ahead: int = 5
    """How many sequences may be stepped over, because their knocks were lost on the way."""
    window: tuple[Sequence, ...] = ()
    """The sequences that open the door now, in the order of the file: the next one and those looked ahead at."""
    left: int = 0
    """How many unused ones the file has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A sequence, or a file of them, and what it opens and runs.

    Timeouts are in seconds; an `open_timeout` of 0 means until it is closed.
    """

    name: str
    sequence: Sequence = ()
    opens: tuple[Opening, ...] = ()
    seq_timeout: float = 5.0
    open_timeout: float = 30.0
    close_sequence: Sequence = ()
    tcpflags: TcpFlags = BARE_SYN
    target: IPAddress | None = None
    commands: Commands | None = None
    one_time: OneTimeSequences | None = None
    cut_sessions: bool = False
    """Whether shutting it early ends the sessions that came through it, too."""

    def __post_init__(self) -> None:
        if not _DOOR_NAME.fullmatch(self.name):
            raise ValueError("a door's name is one word of at most 40 letters, digits, '_', '.' or '-'")
        if bool(self.sequence) == bool(self.one_time):
            raise ValueError("a door needs a sequence, or a file of one-time sequences, and not both")
        if max(map(len, (*self.sequences, self.close_sequence)), default=0) > LONGEST_SEQUENCE:
            raise ValueError(f"a sequence has at most {LONGEST_SEQUENCE} knocks")
        if not self.opens and self.commands is None:
            raise ValueError("a door needs something to open, or a command to run")
        if any(end_alike(sequence, self.close_sequence) for sequence in self.sequences):
            raise ValueError("close_sequence and sequence end alike: the last knock would open the door and shut it")

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Every sequence that opens this door now."""
        return self.one_time.window if self.one_time else (self.sequence,)

    @property
    def knock_ports(self) -> frozenset[Port]:
        """Every port that one of this door's sequences uses."""
        return frozenset(port for sequence in (*self.sequences, self.close_sequence) for port in sequence)

    @property
    def opens_here(self) -> tuple[Port, ...]:
        """The ports of this host itself that it opens."""
        return tuple(opening.port for opening in self.opens if opening.to is None)

    def opens_for(self, source: IPAddress) -> tuple[Opening, ...]:
        """Return what it opens for this source: the ports of this host first, as a hole is read back."""
        mine = [opening for opening in self.opens if opening.is_for(source)]
        return tuple(sorted(mine, key=lambda opening: opening.to is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """One live permission, as the kernel has it. Instants are seconds since the epoch, UTC."""

    door: str
    source: IPAddress
    opens: tuple[Opening, ...]
    opened_at: float
    closes_at: float | None
    packets: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        for opening in self.opens:
            if not opening.is_for(self.source):
                raise ValueError(f"{self.source} and what is opened for it are not of one family")

    @property
    def key(self) -> tuple[str, IPAddress]:
        """What tells one hole from another."""
        return (self.door, self.source)

    def is_expired(self, now: float) -> bool:
        """Whether its time is over at `now` (epoch seconds)."""
        return self.closes_at is not None and self.closes_at <= now

    def put_off(self, seconds: float) -> Hole:
        """This hole if it is opened so much later: it lasts as long."""
        closes_at = None if self.closes_at is None else self.closes_at + seconds
        return replace(self, opened_at=self.opened_at + seconds, closes_at=closes_at)

    def renewed(self, older: Hole) -> Hole:
        """This hole where `older` stands already: opened when that was, open until the later of both deadlines."""
        ends = (self.closes_at, older.closes_at)
        latest = None if None in ends else max(end for end in ends if end is not None)
        return replace(self, opened_at=older.opened_at, closes_at=latest, packets=older.packets, bytes=older.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A firewall rule in no backend's words: every condition that is set must hold.

    `comment` is written into the firewall behind the word nfknock. `family` None means both.
    """

    comment: str
    verdict: Literal["accept", "drop"] = "accept"
    family: Family | None = None
    interface: str | None = None
    states: tuple[str, ...] = ()
    protocol: Literal["tcp", "udp", "icmp", "icmpv6"] | None = None
    source: IPNetwork | None = None
    source_port: int | None = None
    ports: tuple[int, ...] = ()
    icmp_type: int | None = None
    hop_limit: int | None = None

    def __post_init__(self) -> None:
        needed = {"icmp": "ipv4", "icmpv6": "ipv6"}.get(self.protocol or "")
        if needed and self.family not in (None, needed):
            raise ValueError(f"{self.protocol} is a protocol of {needed}")
        if (self.ports or self.source_port) and self.protocol not in PROTOCOL_NUMBERS:
            raise ValueError("a port needs protocol tcp or udp")
        if self.icmp_type is not None and not needed:
            raise ValueError("icmp_type needs protocol icmp or icmpv6")
        if self.hop_limit is not None and self.protocol != "icmpv6":
            raise ValueError("hop_limit needs protocol icmpv6")
        if self.source is not None and self.family not in (None, family_of(self.source)):
            raise ValueError(f"{self.source} is not an {self.family} network")

    def concerns(self, family: Family) -> bool:
        """Whether this rule has a place in that family's table."""
        own: Family | None = self.family
        if self.protocol in ("icmp", "icmpv6"):
            own = "ipv4" if self.protocol == "icmp" else "ipv6"
        elif self.source is not None:
            own = family_of(self.source)
        return own in (None, family)
