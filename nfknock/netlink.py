"""The kernel's netlink, as far as looking at long lists needs it: a question, its answers, their attributes.

pyroute2 gives every attribute an object of its own; a host with ten thousand rules would wait for seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

ROUTE, NETFILTER = 0, 12
DUMP = 0x300
NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
# linux/err.h: MAX_ERRNO
_MOST_ERRNO = 4095
_REQUEST, _ACKNOWLEDGE, _EXCLUSIVE, _CREATE = 1, 4, 0x200, 0x400
# asm/socket.h, linux/netlink.h: errors come without a copy of what they are about.
_SNDBUFFORCE = 32
_SOL_NETLINK, _CAP_ACK = 270, 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_INTERRUPTED = 0x10
_TYPE_MASK = 0x3FFF
_RECEIVED_AT_ONCE = 1 << 18
_SENT_AT_ONCE = 1 << 18
_TIMEOUT = 5.0
_ATTEMPTS = 5


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


def dump(protocol: int, kind: int, body: bytes) -> list[bytes]:
    """Ask for a list and return the body of each answer, asked for anew where the list changed meanwhile.

    Raises OSError; InterruptedDumpError where it changed every time.
    """
    for _attempt in range(_ATTEMPTS - 1):
        # All are taken before one is looked at: the longer that takes, the more often something changes meanwhile.
        with contextlib.suppress(InterruptedDumpError):
            return list(ask(protocol, kind, body))
    return list(ask(protocol, kind, body))


def write(subsystem: int, changes: Sequence[tuple[int, bytes]]) -> None:
    """Send changes (kind and body) to a netfilter subsystem as one transaction; what is new must not be there yet.

    Raises OSError with the first reason, and then nothing was changed.
    """
    frame = struct.pack("=BBH", 0, 0, socket.htons(subsystem))
    # An answer to the last one alone: it comes when all of them are in place, and thousands would not find room.
    last = len(changes)
    raw = _message(_BATCH_BEGIN, _REQUEST, 0, frame)
    for at, (kind, body) in enumerate(changes, 1):
        raw += _message(kind, _REQUEST | _CREATE | _EXCLUSIVE | (_ACKNOWLEDGE if at == last else 0), at, body)
    raw += _message(_BATCH_END, _REQUEST, last + 1, frame)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as writing:
        writing.settimeout(_TIMEOUT)
        _make_room(writing, 2 * len(raw) + _SENT_AT_ONCE)
        writing.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        writing.bind((0, 0))
        writing.send(raw)
        is_done = False
        while not is_done:
            try:
                is_done = any(answer is None for answer in _messages(writing.recv(_RECEIVED_AT_ONCE)))
            except OSError as exc:
                # Where many changes fail, not all reasons find room. The first one did.
                if exc.errno != errno.ENOBUFS:
                    raise


def _make_room(writing: socket.socket, size: int) -> None:
    """Have room for a transaction of that many bytes, as far as that is ours to have."""
    writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    with contextlib.suppress(PermissionError):
        # Beyond net.core.wmem_max; in a user namespace that is all there is.
        writing.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, size)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    padded = body.ljust((len(body) + 3) & ~3, b"\0")
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + padded


def _messages(raw: bytes) -> Iterator[bytes | None]:
    """Yield the messages of one datagram, None for the end of all. Raises OSError."""
    at = 0
    while at + _HEADER.size <= len(raw):
        size, kind, flags, _sequence, _port = _HEADER.unpack_from(raw, at)
        if not _HEADER.size + (_CODE.size if kind == _ERROR else 0) <= size <= len(raw) - at:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        body = raw[at + _HEADER.size : at + size]
        if flags & _INTERRUPTED:
            raise InterruptedDumpError(errno.EINTR, "changed meanwhile")
        if kind == _DONE:
            yield None
            return
        if kind == _ERROR:
            code = -int(_CODE.unpack_from(body)[0])
            if code:
                code = code if 0 < code <= _MOST_ERRNO else errno.EBADMSG
                raise OSError(code, os.strerror(code))
            yield None
            at += (size + 3) & ~3
            continue
        yield body
        at += (size + 3) & ~3


def attributes(raw: bytes, at: int = 0) -> list[tuple[int, bytes]]:
    """Return each attribute's number and content. What is cut off in its head is passed over."""
    found = []
    unpack, last = _ATTRIBUTE.unpack_from, len(raw) - _ATTRIBUTE.size
    while at <= last:
        size, kind = unpack(raw, at)
        if size < _ATTRIBUTE.size:
            break
        found.append((kind & _TYPE_MASK, raw[at + _ATTRIBUTE.size : at + size]))
        at += (size + 3) & ~3
    return found


def first(raw: bytes) -> tuple[int, bytes]:
    """Return the first attribute's number and content, without a look at the others; (0, b"") if there is none."""
    if len(raw) < _ATTRIBUTE.size:
        return 0, b""
    size, kind = _ATTRIBUTE.unpack_from(raw)
    return kind & _TYPE_MASK, raw[_ATTRIBUTE.size : size]


def find(raw: bytes, kind: int) -> bytes:
    """Return the content of the first attribute with this number, without a look at those behind it; b"" for none."""
    at, unpack, last = 0, _ATTRIBUTE.unpack_from, len(raw) - _ATTRIBUTE.size
    while at <= last:
        size, found = unpack(raw, at)
        if size < _ATTRIBUTE.size:
            break
        if found & _TYPE_MASK == kind:
            return raw[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return b""


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
