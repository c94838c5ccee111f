"""One rule as the kernel keeps it (struct ipt_entry, struct ip6t_entry), read without any library.

The library's own decoding redirects file descriptor 1 for every match of every rule; a daemon that reads its holes
back all the time cannot have that, and the few fields needed lie at fixed places
(linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/x_tables.h).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from nfknock.core.model import Family, IPAddress, Protocol


@dataclass(frozen=True, slots=True)
class _Layout:
    address_size: int
    protocol_at: int
    offsets_at: int
    counters_at: int
    size: int


_LAYOUTS: dict[Family, _Layout] = {
    "ipv4": _Layout(address_size=4, protocol_at=80, offsets_at=88, counters_at=96, size=112),
    "ipv6": _Layout(address_size=16, protocol_at=128, offsets_at=140, counters_at=152, size=168),
}
_EXTENSION_HEADER = 32
_LONGEST_NAME = 29
_PROTOCOL_NAMES: dict[int, Protocol] = {6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule's bytes, and where it jumps: a verdict, a chain, or the name of a target extension."""

    family: Family
    raw: bytes
    jump: str

    @property
    def target_offset(self) -> int:
        """Where the matches end and the target begins."""
        return int(struct.unpack_from("=H", self.raw, _LAYOUTS[self.family].offsets_at)[0])

    @property
    def head(self) -> bytes:
        """Addresses, interfaces and protocol, as bytes to compare."""
        return self.raw[: _LAYOUTS[self.family].protocol_at + 4]

    @property
    def is_for_everything(self) -> bool:
        """Whether it has no condition at all."""
        return not any(self.head) and self.target_offset == _LAYOUTS[self.family].size

    @property
    def packed_source(self) -> bytes:
        """The source address as bytes, without its mask."""
        return self.raw[: _LAYOUTS[self.family].address_size]

    @property
    def source(self) -> IPAddress:
        """The source address, without its mask."""
        return ip_address(self.packed_source)

    @property
    def destination(self) -> IPAddress | None:
        """The destination address, without its mask; None for any."""
        size = _LAYOUTS[self.family].address_size
        # In this order: source, destination, mask of the source, mask of the destination.
        if not any(self.raw[3 * size : 4 * size]):
            return None
        return ip_address(self.raw[size : 2 * size])

    @property
    def protocol(self) -> Protocol | None:
        """tcp, udp or None for anything else."""
        number = struct.unpack_from("=H", self.raw, _LAYOUTS[self.family].protocol_at)[0]
        return _PROTOCOL_NAMES.get(number)

    @property
    def counters(self) -> tuple[int, int]:
        """Packets and bytes that the rule has matched."""
        packets, octets = struct.unpack_from("=QQ", self.raw, _LAYOUTS[self.family].counters_at)
        return packets, octets

    def matches(self) -> dict[str, bytes]:
        """The private data of each match extension, by name."""
        found: dict[str, bytes] = {}
        offset, end = _LAYOUTS[self.family].size, self.target_offset
        while offset + _EXTENSION_HEADER <= end:
            size = struct.unpack_from("=H", self.raw, offset)[0]
            if size < _EXTENSION_HEADER:
                break
            name = self.raw[offset + 2 : offset + 31].split(b"\0", 1)[0].decode("ascii", "replace")
            found[name] = self.raw[offset + _EXTENSION_HEADER : offset + size]
            offset += size
        return found

    def comment(self) -> str:
        """The text of the rule's comment, "" without one."""
        return self.matches().get("comment", b"").split(b"\0", 1)[0].decode(errors="replace")

    def destination_port(self) -> int | None:
        """The single port of a tcp or udp match (struct xt_tcp and xt_udp: source range, destination range)."""
        data = self.matches().get(self.protocol or "")
        if data is None or len(data) < 8:
            return None
        low, high = struct.unpack_from("=HH", data, 4)
        return int(low) if low == high else None

    def with_counters(self, packets: int, octets: int) -> Entry:
        """The same rule with other counters."""
        raw = bytearray(self.raw)
        struct.pack_into("=QQ", raw, _LAYOUTS[self.family].counters_at, packets, octets)
        return Entry(self.family, bytes(raw), self.jump)

    def with_target_name(self, name: str) -> Entry:
        """The same rule with its target called `name`: libiptc takes a verdict or a chain by name, not by number."""
        raw = bytearray(self.raw)
        at = self.target_offset + 2
        raw[at : at + _LONGEST_NAME] = name.encode().ljust(_LONGEST_NAME, b"\0")
        return Entry(self.family, bytes(raw), self.jump)

    def is_same_rule(self, other: Entry, mask: bytes) -> bool:
        """Whether both say the same where `mask` has bits; counters and the kernel's own fields never do."""
        if (self.family, self.jump, len(self.raw)) != (other.family, other.jump, len(other.raw)):
            return False
        bits = int.from_bytes(mask, "little")
        ours, theirs = (int.from_bytes(raw, "little") for raw in (self.raw, other.raw))
        return not (ours ^ theirs) & bits


def comparison_mask(entry: Entry, user_sizes: dict[str, int], target_user_size: int | None) -> bytes:
    """Return which bytes of an entry are the administrator's (0xff) and which the kernel's or nobody's (0).

    `user_sizes` has, for each match extension, how many bytes of its data are not the kernel's own.
    `target_user_size` is None for a verdict or a jump, which the kernel writes as a number: compare `jump` instead.
    """
    layout = _LAYOUTS[entry.family]
    mask = bytearray(len(entry.raw))
    mask[: layout.protocol_at + 4] = b"\xff" * (layout.protocol_at + 4)
    if entry.family == "ipv6":
        mask[layout.protocol_at + 4] = 0xFF
    mask[layout.offsets_at : layout.offsets_at + 4] = b"\xff" * 4
    offset = layout.size
    while offset < entry.target_offset:
        size = struct.unpack_from("=H", entry.raw, offset)[0]
        name = entry.raw[offset + 2 : offset + 31].split(b"\0", 1)[0].decode("ascii")
        _mask_extension(mask, offset, len(name), user_sizes[name])
        offset += size
    if target_user_size is not None:
        name_length = len(entry.raw[offset + 2 : offset + 31].split(b"\0", 1)[0])
        _mask_extension(mask, offset, name_length, target_user_size)
    return bytes(mask)


def _mask_extension(mask: bytearray, offset: int, name_length: int, user_size: int) -> None:
    # Size, name with its end, revision. What follows the name in its field is whatever was in the buffer.
    mask[offset : offset + 2 + name_length + 1] = b"\xff" * (2 + name_length + 1)
    mask[offset + 31] = 0xFF
    data = offset + _EXTENSION_HEADER
    mask[data : data + user_size] = b"\xff" * user_size
