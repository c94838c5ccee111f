"""Which source addresses can belong to somebody.

Only what the address itself tells; the host's own addresses are the firewall's to know (its rules drop them before
they come here).
"""

from __future__ import annotations

# IPv4 dressed up as IPv6: compatible (among them the unspecified address and loopback) and mapped.
_COMPATIBLE = bytes(12)
_MAPPED = bytes(10) + b"\xff\xff"
_6TO4 = b"\x20\x02"


def is_possible_source(address: bytes) -> bool:
    """Whether a host out there can have this address (packed, 4 or 16 bytes).

    Not: unspecified and 0.0.0.0/8, loopback, multicast, 240.0.0.0/4 with the broadcast address, IPv4 dressed up as
    IPv6, and 6to4 of what nobody has on the Internet (RFC 1122 section 3.2.1.3, RFC 6890, RFC 4291 section 2.5, RFC
    3056 section 2).
    """
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    if address.startswith(_6TO4):
        within = address[2:6]
        return is_possible_source(within) and not _is_private(within)
    return address[0] != 0xFF and not address.startswith((_COMPATIBLE, _MAPPED))


def _is_private(address: bytes) -> bool:
    """Whether an IPv4 address is one of those that each net has for itself: RFC 1918, and RFC 3927's of a link."""
    first, second = address[0], address[1]
    return first == 10 or (first, second) in ((192, 168), (169, 254)) or (first == 172 and 16 <= second < 32)
