"""A packet that somebody may send: every byte of it is known, or is not.

Answers have three values: True, False, and None for "it depends on what is not known".
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from nfknock.core.model import PROTOCOL_NUMBERS, IPAddress, IPNetwork, Port

# linux/netfilter/nf_conntrack_common.h, as `ct state` and `--ctstate` have it: the packet begins a connection.
STATE_NEW = 1 << 3

Answer = bool | None
"""Whether something holds; None if that depends on what is not known."""


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes, and which of their bits are known.

    `is_unlisted` is for what is not known and in no list, as a sender who is nobody in particular.
    """

    value: bytes
    known: bytes
    is_unlisted: bool = False

    @classmethod
    def of(cls, value: bytes) -> Field:
        """Return bytes that are known."""
        return cls(value, b"\xff" * len(value))

    @classmethod
    def unknown(cls, size: int) -> Field:
        """Return bytes of which nothing is known."""
        return cls(bytes(size), bytes(size))

    def part(self, start: int, size: int) -> Field:
        """Return some of the bytes; what lies beyond is not known."""
        value, known = self.value[start : start + size], self.known[start : start + size]
        return Field(value.ljust(size, b"\0"), known.ljust(size, b"\0"), self.is_unlisted)

    def masked(self, mask: bytes, flip: bytes) -> Field:
        """Return `self & mask ^ flip`: what the mask takes away is known to be nothing."""
        value = bytes((v & m) ^ f for v, m, f in zip(self.value, mask, flip, strict=True))
        return Field(value, bytes(k | (m ^ 0xFF) for k, m in zip(self.known, mask, strict=True)), self.is_unlisted)

    def bounds(self) -> tuple[bytes, bytes]:
        """Return the least and the greatest that it can be."""
        pairs = tuple(zip(self.value, self.known, strict=True))
        return bytes(v & k for v, k in pairs), bytes(v | (k ^ 0xFF) for v, k in pairs)

    def equals(self, other: bytes) -> Answer:
        """Whether it is just these bytes."""
        if any((v ^ o) & k for v, o, k in zip(self.value, other, self.known, strict=True)):
            return False
        return True if self.is_known else self._otherwise()

    def is_between(self, low: bytes, high: bytes) -> Answer:
        """Whether it is one of these, both ends included, as numbers in network order."""
        least, greatest = self.bounds()
        if low <= least and greatest <= high:
            return True
        return False if greatest < low or high < least else self._otherwise()

    @property
    def is_known(self) -> bool:
        """Whether all of it is known."""
        return all(k == 0xFF for k in self.known)

    def _otherwise(self) -> Answer:
        return False if self.is_unlisted else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The first packet of a connection to a port, coming in at an interface other than loopback.

    Of the source a network is known, or an address, or nothing. With `is_anybody` the rest of it is nobody in
    particular: in no network that a rule names, and here for the first time. With `is_any_port` it goes to a port that
    no rule names, and of `port` the protocol counts. `behind` is the host behind this one that it goes to; None: this.
    """

    port: Port
    version: int
    interface: str
    interface_number: int = 0
    source: IPNetwork | None = None
    is_anybody: bool = False
    is_any_port: bool = False
    behind: IPAddress | None = None

    @property
    def protocol(self) -> int:
        """The number of its transport protocol."""
        return PROTOCOL_NUMBERS[self.port.protocol]

    @property
    def source_field(self) -> Field:
        """Its source address."""
        size = 4 if self.version == 4 else 16
        if self.source is None:
            return Field(bytes(size), bytes(size), self.is_anybody)
        return Field(self.source.network_address.packed, self.source.netmask.packed, self.is_anybody)

    @property
    def port_field(self) -> Field:
        """The port that it goes to."""
        if self.is_any_port:
            return Field(bytes(2), bytes(2), is_unlisted=True)
        return Field.of(self.port.number.to_bytes(2))

    def goes_to(self, low: int, high: int) -> bool:
        """Whether it goes to one of these ports, both ends included; to any port at all if that is what they are."""
        if self.is_any_port:
            return (low, high) == (0, 65535)
        return low <= self.port.number <= high

    @property
    def flags(self) -> int:
        """The TCP flags: a bare SYN."""
        return 0x02


def network_of(address: IPAddress) -> IPNetwork:
    """Return the network that holds this address alone."""
    return ip_network(address)


def negate(answer: Answer) -> Answer:
    """Return the opposite; of what is not known that is not known either."""
    return None if answer is None else not answer


def every(*answers: Answer) -> Answer:
    """Whether all of these hold."""
    if False in answers:
        return False
    return None if None in answers else True


def some(*answers: Answer) -> Answer:
    """Whether one of these holds."""
    if True in answers:
        return True
    return None if None in answers else False
