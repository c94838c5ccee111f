"""What nf_tables knows of a packet, and the registers that a rule keeps parts of it in."""

from __future__ import annotations

import struct
import sys

from nfknock.host.probe import STATE_NEW, Field, Probe

# linux/netfilter/nf_tables.h
_IIF, _IIFNAME, _PROTOCOL, _NFPROTO, _L4PROTO, _PKTTYPE = 4, 6, 1, 15, 16, 19
_CT_STATE, _CT_DIRECTION, _CT_STATUS = 0, 1, 2
_NETWORK, _TRANSPORT = 1, 2
_FIB_TYPE, _FIB_SOURCE, _FIB_TARGET = 3, 1, 2
# linux/rtnetlink.h: what a route to another host is, and to this one.
_UNICAST, _LOCAL = 1, 2
# Neither expected, answered, confirmed nor translated; the bits above say other things.
_STATUS_KNOWN = 0x7F
_SIZE = 64
# Where the source is and the target after it, how long they are, and all of it.
_ADDRESSES = {4: (12, 4, 20), 6: (8, 16, 40)}
_PROTOCOL_AT = {4: 9, 6: 6}


class Registers:
    """Sixteen words that can also be had as four of four each."""

    def __init__(self) -> None:
        self._value = bytearray(_SIZE)
        self._known = bytearray(_SIZE)
        self._unlisted = bytearray(_SIZE)

    def forget(self) -> None:
        """Let what somebody else writes into any of them be unknown."""
        self._known = bytearray(_SIZE)
        self._unlisted = bytearray(_SIZE)

    def store(self, register: int, content: Field) -> None:
        """Put something into a register; the rest of its last word is zero."""
        at = _place(register)
        size = len(content.value)
        padding = -size % 4
        self._value[at : at + size + padding] = content.value + bytes(padding)
        self._known[at : at + size + padding] = content.known + b"\xff" * padding
        self._unlisted[at : at + size + padding] = bytes([content.is_unlisted] * size) + bytes(padding)

    def load(self, register: int, size: int) -> Field:
        """Return what begins in a register."""
        part = slice(_place(register), _place(register) + size)
        is_unlisted = any(s and k != 0xFF for s, k in zip(self._unlisted[part], self._known[part], strict=True))
        return Field(bytes(self._value[part]), bytes(self._known[part]), is_unlisted)


def _place(register: int) -> int:
    return (register - 1) * 16 if register < 8 else (register - 8) * 4


def meta(key: int, probe: Probe) -> Field:
    """Return what `meta` loads."""
    is_ipv4 = probe.version == 4
    loaded = {
        _IIF: struct.pack("=I", probe.interface_number),
        _IIFNAME: probe.interface.encode().ljust(16, b"\0"),
        _PROTOCOL: b"\x08\x00" if is_ipv4 else b"\x86\xdd",
        _NFPROTO: b"\x02" if is_ipv4 else b"\x0a",
        _L4PROTO: bytes([probe.protocol]),
        _PKTTYPE: b"\0",
    }
    return Field.of(loaded[key]) if key in loaded else Field.unknown(16)


def conntrack(key: int) -> Field:
    """Return what `ct` loads for the first packet of a connection that nobody expects or translates."""
    loaded = {
        _CT_STATE: Field.of(struct.pack("=I", STATE_NEW)),
        _CT_DIRECTION: Field.of(b"\0"),
        _CT_STATUS: Field(bytes(4), struct.pack("=I", _STATUS_KNOWN)),
    }
    return loaded.get(key) or Field.unknown(16)


def payload(base: int, offset: int, size: int, probe: Probe) -> Field:
    """Return a part of the packet's network or transport header."""
    if base == _TRANSPORT:
        return _transport(probe, is_to_port=offset < 4 and offset + size > 2).part(offset, size)
    if base != _NETWORK:
        return Field.unknown(size)
    at, length, whole = _ADDRESSES[probe.version]
    source = probe.source_field
    value, known = bytearray(whole), bytearray(whole)
    value[at : at + length], known[at : at + length] = source.value, source.known
    if probe.behind is not None:
        value[at + length : at + 2 * length] = probe.behind.packed
        known[at + length : at + 2 * length] = b"\xff" * length
    protocol_at = _PROTOCOL_AT[probe.version]
    value[protocol_at], known[protocol_at] = probe.protocol, 0xFF
    is_unlisted = source.is_unlisted and offset < at + length and at < offset + size
    return Field(bytes(value), bytes(known), is_unlisted).part(offset, size)


def _transport(probe: Probe, *, is_to_port: bool) -> Field:
    port = probe.port_field
    value, known = bytes(2) + port.value, bytes(2) + port.known
    if probe.port.protocol == "tcp":
        # The flags are byte 13; the low bits of the one before are reserved, and sent as zero.
        value, known = value + bytes(9) + bytes([probe.flags]), known + bytes(9) + b"\xff"
    return Field(value, known, port.is_unlisted and is_to_port)


def fib(result: int, flags: int, probe: Probe) -> Field:
    """Return what `fib` finds: the type of an address is known, the way to it is not."""
    if result == _FIB_TYPE and flags & (_FIB_SOURCE | _FIB_TARGET):
        is_here = flags & _FIB_TARGET and probe.behind is None
        return Field.of(struct.pack("=I", _LOCAL if is_here else _UNICAST))
    return Field.unknown(16)


def swapped(content: Field, size: int) -> Field:
    """Return every number of `size` bytes in the other byte order, if this host's is another than the network's."""
    if sys.byteorder == "big":
        return content
    starts = range(0, len(content.value), size)
    value = b"".join(content.value[at : at + size][::-1] for at in starts)
    known = b"".join(content.known[at : at + size][::-1] for at in starts)
    return Field(value, known, content.is_unlisted)
