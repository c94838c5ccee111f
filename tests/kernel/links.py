"""A cable that is long and bad: what goes in comes out late, in order, sometimes twice, and sometimes not at all.

What netem does in kernels that have it. A third namespace stands between the two hosts, and a thread carries every
frame from one side to the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path

from tests.lab import Host, Lab

_ETH_P_ALL = 3
# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_LONGEST_FRAME = 1 << 16
_SEED = 20261121


class BadLink(Lab):
    """A bastion and a client with such a cable between them."""

    def __init__(self, directory: Path, *, delay: float, duplicates: float = 0.0, loss: float = 0.0) -> None:
        """`delay` is in seconds, one way; `duplicates` and `loss` are shares of the frames."""
        self._delay = delay
        self._duplicates = duplicates
        self._loss = loss
        self._chance = random.Random(_SEED)
        self._has_stopped = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._middle = Host({})
        self.carried = self.lost = self.doubled = 0
        super().__init__(directory)

    def _lay_cable(self) -> None:
        middle = str(self._middle.pid)
        self.bastion.run("ip", "link", "add", "b0", "type", "veth", "peer", "name", "to-b", "netns", middle)
        self.client.run("ip", "link", "add", "c0", "type", "veth", "peer", "name", "to-c", "netns", middle)
        for host, device in ((self.bastion, "b0"), (self.client, "c0")):
            # Left to itself a veth hands over packets whose checksums are still to be made.
            with host.here(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                _switch_checksums_off(control, device)
        with self._middle.here():
            self._ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) for _ in range(2)]
        for end, device in zip(self._ends, ("to-b", "to-c"), strict=True):
            self._middle.run("ip", "link", "set", device, "up")
            end.bind((device, _ETH_P_ALL))
        self._thread.start()

    def _carry(self) -> None:
        on_the_way: deque[tuple[float, socket.socket, bytes]] = deque()
        others = dict(zip(self._ends, reversed(self._ends), strict=True))
        while not self._has_stopped.is_set():
            pause = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else 0.1
            for end in select.select(self._ends, [], [], min(pause, 0.1))[0]:
                frame, address = end.recvfrom(_LONGEST_FRAME)
                if address[2] != socket.PACKET_OUTGOING:
                    for _ in range(self._copies()):
                        on_the_way.append((time.monotonic() + self._delay, others[end], frame))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _at, end, frame = on_the_way.popleft()
                with contextlib.suppress(OSError):
                    end.send(frame)

    def _copies(self) -> int:
        self.carried += 1
        if self._chance.random() < self._loss:
            self.lost += 1
            return 0
        is_doubled = self._chance.random() < self._duplicates
        self.doubled += is_doubled
        return 1 + is_doubled

    def stop(self) -> None:
        # Before its ends are gone.
        self._has_stopped.set()
        self._thread.join(5)
        super().stop()
        for end in self._ends:
            end.close()
        self._middle.stop()


def _switch_checksums_off(control: socket.socket, device: str) -> None:
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))
