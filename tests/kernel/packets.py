"""Sends packets that no socket would: from any address, and as fast as the kernel takes them.

    python -m tests.kernel.packets DESTINATION RATE SECONDS PORT[,PORT...]

sends so many bare SYNs a second, each from a random address, to these ports in turn; port 0 is any. As it takes longer
to make than to send them, they are made first; it prints `ready` then, and in the end how many were sent.
"""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from math import inf

_LIBC = ctypes.CDLL(None, use_errno=True)
# The kernel takes no more messages in one call (UIO_MAXIOV).
_AT_ONCE = 1024
_SYN_SIZE = 40


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


class Sender:
    """Sends SYNs of one size from a buffer, many in one system call."""

    def __init__(self, destination: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._socket.connect((destination, 0))
        self.buffer = bytearray(_AT_ONCE * _SYN_SIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        self._vectors = [_Vector(start + at * _SYN_SIZE, _SYN_SIZE) for at in range(_AT_ONCE)]
        self._messages = (_Message * _AT_ONCE)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.vectors = ctypes.pointer(vector)
            message.vector_count = 1

    def send(self, count: int) -> None:
        """Send the first so many packets of the buffer."""
        sent = 0
        while sent < count:
            rest = ctypes.byref(self._messages, sent * ctypes.sizeof(_Message))
            done = _LIBC.sendmmsg(self._socket.fileno(), rest, count - sent, 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += done

    def close(self) -> None:
        self._socket.close()


def scan(destination: str, source: str, ports: Iterable[int], flags: int = 2, *, rate: float = inf) -> None:
    """Send one packet to each of these ports, in this order, from the namespace where the thread is.

    As fast as can be, or about so many a second.
    """
    sender = Sender(destination)
    template = Template(destination, flags)
    address = int.from_bytes(socket.inet_aton(source), "big")
    remaining = iter(ports)
    while some := tuple(islice(remaining, _AT_ONCE if rate == inf else max(1, int(rate) // 500))):
        for at, port in enumerate(some):
            template.write(sender.buffer, at, address, port, port)
        sender.send(len(some))
        time.sleep(len(some) / rate)
    sender.close()


class Template:
    """A bare SYN, whose checksum is made from what changes."""

    def __init__(self, destination: str, flags: int = 2) -> None:
        target = socket.inet_aton(destination)
        self._pack = struct.Struct("!BBHHHBBHI4sHHIIBBHHH").pack_into
        self._target = target
        self._flags = flags
        # The words of the checksum that stay (RFC 9293 section 3.1): destination, protocol, length, flags, window.
        self._sum = sum(struct.unpack("!2H", target)) + 6 + 20 + (0x5000 | flags) + 1024

    def write(self, buffer: bytearray, at: int, source: int, port: int, number: int) -> None:
        """Write the packet at a place of the buffer; `number` is its sequence number, and makes its source port."""
        source_port = 1024 + number % 60_000
        total = self._sum + (source >> 16) + (source & 0xFFFF) + source_port + port + (number >> 16) + (number & 0xFFFF)
        total = (total & 0xFFFF) + (total >> 16)
        total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        # The kernel fills in the checksum of the IP header.
        self._pack(
            buffer, at * _SYN_SIZE,
            0x45, 0, _SYN_SIZE, number & 0xFFFF, 0, 64, 6, 0, source, self._target,
            source_port, port, number, 0, 0x50, self._flags, 1024, total, 0,
        )  # fmt: skip


def prepare(destination: str, count: int, ports: Iterator[int]) -> bytearray:
    """Return so many SYNs, each from a random address."""
    template, chance = Template(destination), random.Random()
    made = bytearray(count * _SYN_SIZE)
    for at in range(count):
        # 1.0.0.0 to 126.255.255.255 and 128.0.0.0 to 191.255.255.255: a host may have any of them.
        number = chance.getrandbits(32)
        source = number % 0x3F000000 + (0x01000000, 0x80000000)[number >> 31]
        template.write(made, at, source, next(ports) or number % 65535 + 1, number)
    return made


def flood(destination: str, rate: int, seconds: float, made: bytearray) -> int:
    """Send packets of `prepare`, so many a second; return how many were sent."""
    sender = Sender(destination)
    at_once = min(_AT_ONCE, max(1, rate // 1000))
    began_at, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began_at) < seconds and sent < len(made) // _SYN_SIZE:
        if sent > passed * rate:
            time.sleep((sent - passed * rate) / rate)
        some = made[sent * _SYN_SIZE : (sent + at_once) * _SYN_SIZE]
        sender.buffer[: len(some)] = some
        sender.send(len(some) // _SYN_SIZE)
        sent += len(some) // _SYN_SIZE
    sender.close()
    return sent


def main() -> None:
    """Make all packets, say that they are there, and send them."""
    where, how_many, how_long, which = sys.argv[1:]
    rate, seconds = int(how_many), float(how_long)
    made = prepare(where, int(rate * seconds), cycle(map(int, which.split(","))))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdout.write(f"{flood(where, rate, seconds, made)}\n")


if __name__ == "__main__":
    main()
