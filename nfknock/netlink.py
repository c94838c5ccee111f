"""The kernel's netlink, as far as looking at long lists needs it: a question, its answers, their attributes.

pyroute2 gives every attribute an object of its own; a host with ten thousand rules would wait for seconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

ROUTE, NETFILTER = 0, 12
DUMP = 0x300

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST = 1
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_INTERRUPTED = 0x10
_TYPE_MASK = 0x3FFF
_RECEIVED_AT_ONCE = 1 << 18
_TIMEOUT = 5.0


class InterruptedDumpError(OSError):
    """What was asked about changed while it was told; ask again."""


def ask(protocol: int, kind: int, body: bytes, flags: int = DUMP) -> Iterator[bytes]:
    """Send one question and yield the body of each answer. Raises OSError, above all PermissionError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(_TIMEOUT)
        asking.bind((0, 0))
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            raw = asking.recv(_RECEIVED_AT_ONCE)
            for answer in _messages(raw):
                if answer is None:
                    return
                yield answer
            if not flags & DUMP:
                return


def _messages(raw: bytes) -> Iterator[bytes | None]:
    """Yield the messages of one datagram, None for the end of all."""
    at = 0
    while at + _HEADER.size <= len(raw):
        size, kind, flags, _sequence, _port = _HEADER.unpack_from(raw, at)
        body = raw[at + _HEADER.size : at + size]
        if flags & _INTERRUPTED:
            raise InterruptedDumpError(errno.EINTR, "changed meanwhile")
        if kind == _DONE:
            yield None
            return
        if kind == _ERROR:
            code = -int(struct.unpack_from("=i", body)[0])
            if code:
                raise OSError(code, os.strerror(code))
            yield None
            return
        yield body
        at += (size + 3) & ~3


def attributes(raw: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield each attribute's number and content."""
    while at + _ATTRIBUTE.size <= len(raw):
        size, kind = _ATTRIBUTE.unpack_from(raw, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, raw[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def attribute(kind: int, content: bytes) -> bytes:
    """Return one attribute, as it stands in a question."""
    size = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(size, kind) + content.ljust((len(content) + 3) & ~3, b"\0")


def number(content: bytes) -> int:
    """Return a number in network order, as nf_tables has them."""
    return int.from_bytes(content)


def text(content: bytes) -> str:
    """Return a text that ends with a zero byte."""
    return content.split(b"\0", 1)[0].decode(errors="replace")
