"""What stands in front of the IP packet in a capture: the link layer, by its number.

Numbers and layouts are those of https://www.tcpdump.org/linktypes.html. Raw IP has three numbers, because systems never
agreed on one.
"""

from __future__ import annotations

from collections.abc import Callable

_ETHERTYPES_OF_IP = (0x0800, 0x86DD)
# 802.1Q, 802.1ad (QinQ), and what QinQ was before it was a standard.
_ETHERTYPES_OF_TAGS = (0x8100, 0x88A8, 0x9100)
# Linux tells what a packet was to the host: 0 to us, 1 broadcast, 2 multicast; 3 is to somebody else, 4 from us.
_LAST_KIND_TO_US = 2


def _raw(frame: bytes) -> bytes | None:
    return frame


def _ethernet(frame: bytes) -> bytes | None:
    return _behind_ethertype(frame, 12)


def _cooked(frame: bytes) -> bytes | None:
    return _behind_ethertype(frame, 14) if _number(frame, 0) <= _LAST_KIND_TO_US else None


def _cooked2(frame: bytes) -> bytes | None:
    if len(frame) < 20 or frame[10] > _LAST_KIND_TO_US:
        return None
    # The protocol stands in front here; a tag and what follows it stand behind the header.
    return _behind_ethertype(frame[:2] + frame[20:], 0)


def _loopback(frame: bytes) -> bytes | None:
    return frame[4:]  # the address family, which each BSD numbers in its own way; the packet says it as well


_LAYERS: dict[int, tuple[str, Callable[[bytes], bytes | None]]] = {
    0: ("BSD loopback", _loopback),
    1: ("Ethernet", _ethernet),
    12: ("raw IP", _raw),
    14: ("raw IP", _raw),
    101: ("raw IP", _raw),
    108: ("BSD loopback", _loopback),
    113: ("Linux cooked", _cooked),
    228: ("raw IP", _raw),
    229: ("raw IP", _raw),
    276: ("Linux cooked", _cooked2),
}

KNOWN = ", ".join(dict.fromkeys(name for name, _strip in _LAYERS.values()))


def is_known(link_type: int) -> bool:
    """Whether captures of this link type can be read."""
    return link_type in _LAYERS


def strip(link_type: int, frame: bytes) -> bytes | None:
    """Return the IP packet of a frame, of a link type that is known; None when there is none that came to the host."""
    return _LAYERS[link_type][1](frame)


def _behind_ethertype(frame: bytes, offset: int) -> bytes | None:
    while _number(frame, offset) in _ETHERTYPES_OF_TAGS:
        offset += 4
    return frame[offset + 2 :] if _number(frame, offset) in _ETHERTYPES_OF_IP else None


def _number(frame: bytes, offset: int) -> int:
    """The 16 bits there; beyond the end, a number that nothing has."""
    return frame[offset] << 8 | frame[offset + 1] if offset + 2 <= len(frame) else 0xFFFF
