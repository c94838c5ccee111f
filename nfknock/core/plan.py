"""What the firewall should hold, in no backend's words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nfknock.core.model import BARE_SYN, Door, Opening, Port, Rule, TcpFlags

Answer = Literal["drop", "reject"]
ReaderKind = Literal["nfqueue", "nflog"]

# What the NFQUEUE reader marks a knock with that is to be answered ("knok" in ASCII); a backend's rules reject what
# bears it.
REJECT_MARK = 0x6B6E6F6B
# What nf_tables marks packets with that are let in ("nfkn"), for chains of the host's own. The whole number and no
# single bit: a bit may be somebody else's.
ADMIT_MARK = 0x6E666B6E
# The nf_tables table that is all ours, of family inet.
OWN_TABLE = "nfknock"


# So many strays a second the reader is shown at most, of each kind, and so many at once after a pause: enough of every
# scan, and little work under a flood (docs/design/0013-strangers.md).
STRAYS_A_SECOND = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Strays:
    """Which packets to closed ports the daemon gets copies of, by an NFLOG group of their own, one by one.

    Of what comes to this host's own addresses and nothing else took: UDP, and TCP with any of these flags. Not what is
    sent to many, which nobody scans with.
    """

    group: int
    tcpflags: tuple[TcpFlags, ...] = (BARE_SYN,)


# Where knocks are limited by source: so many pass at once after a pause, as several people may be behind one address;
# a pause is this long, in seconds; and so many sources of each family are kept, at some 100 bytes of kernel memory.
KNOCKS_AT_ONCE = 64
LIMITED_FOR = 1
MOST_LIMITED = 1 << 18


# In seconds, what the kernel counts at most for an entry of a set (IPSET_MAX_TIMEOUT): nearly 25 days.
LONGEST_IN_SET = 2147483


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The firewall that a configuration asks for, but for its holes.

    In this order: `baseline` (what every host needs), `allowed` (open to everybody or to somebody), holes, and the
    `knock_ports`, whose packets go to the `reader`, by the NFQUEUE number or NFLOG group `queue`. With `interfaces`,
    holes and knocks count on those alone. `answer` is what becomes of a knock packet. `forwarded` is what doors open on
    hosts behind this one: shut for everybody, on those interfaces, but for holes. Sessions with what is in `cut` are
    not taken up again once they were cut. `strays` are shown behind everything else, the host's own rules included;
    None: they are not.
    """

    baseline: tuple[Rule, ...]
    allowed: tuple[Rule, ...]
    knock_ports: tuple[Port, ...]
    queue: int
    reader: ReaderKind = "nfqueue"
    answer: Answer = "drop"
    interfaces: tuple[str, ...] = ()
    opens: tuple[Port, ...] = ()
    """What doors open on this host, for backends that have to know who stands in the way."""
    forwarded: tuple[Opening, ...] = ()
    cut: tuple[Opening, ...] = ()
    strays: Strays | None = None
    knocks_a_second: int = 0
    """How many knocks of one source reach the reader, of an IPv6 net of 64 bits; 0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Which backend writes the firewall, and how it stands in the host.

    `attach` is the base chain of the host's own ruleset ("FAMILY TABLE CHAIN") that the nftables backend stands in,
    "" where it finds out by itself. `set_size` is how many entries a set holds, for backends that keep holes in sets:
    one for each port that a hole opens.
    """

    name: str = "iptables"
    attach: str = ""
    set_size: int = 65536

    @property
    def longest(self) -> int | None:
        """How long a hole can last, in seconds, if it ends at all; None: as long as a configuration may ask for."""
        return LONGEST_IN_SET if self.name == "ipset" else None


def knock_ports(doors: Iterable[Door]) -> tuple[Port, ...]:
    """Every port that any door listens to, in a fixed order."""
    return tuple(sorted({port for door in doors for port in door.knock_ports}))


def opened_here(doors: Iterable[Door]) -> tuple[Port, ...]:
    """Every port of this host that any door opens, in a fixed order."""
    return tuple(sorted({port for door in doors for port in door.opens_here}))


def cut_openings(doors: Iterable[Door]) -> tuple[Opening, ...]:
    """Everything whose sessions are cut when a door is shut early, in a fixed order."""
    return tuple(sorted({opening for door in doors if door.cut_sessions for opening in door.opens}, key=str))


def forwarded(doors: Iterable[Door]) -> tuple[Opening, ...]:
    """Everything that any door opens on a host behind this one, in a fixed order."""
    return tuple(sorted({opening for door in doors for opening in door.opens if opening.to is not None}, key=str))


def stray_flags(doors: Iterable[Door]) -> tuple[TcpFlags, ...]:
    """Return which TCP packets mean anything to any door, in a fixed order."""
    return tuple(sorted({door.tcpflags for door in doors}, key=lambda flags: (flags.mask, flags.value)))
