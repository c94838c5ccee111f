"""Which source addresses can belong to somebody.

Only what the address itself tells; the host's own addresses are the firewall's to know (its rules drop them before
they come here).
"""

from __future__ import annotations

_UNSPECIFIED = bytes(16)
_LOOPBACK6 = bytes(15) + b"\x01"
_MAPPED = bytes(10) + b"\xff\xff"


def is_possible_source(address: bytes) -> bool:
    """Whether a host out there can have this address (packed, 4 or 16 bytes).

    Not: unspecified and 0.0.0.0/8, loopback, multicast, 240.0.0.0/4 with the broadcast address, and IPv4 dressed up
    as IPv6 (RFC 1122 section 3.2.1.3, RFC 6890, RFC 4291 section 2.5).
    """
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and address not in (_UNSPECIFIED, _LOOPBACK6) and not address.startswith(_MAPPED)
