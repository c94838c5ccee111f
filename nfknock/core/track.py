"""One sequence of one door, ready for comparing with packets."""

from __future__ import annotations

from dataclasses import replace

from nfknock.core.decisions import CloseDoor, OpenDoor
from nfknock.core.model import Door, IPAddress, Sequence
from nfknock.core.packet import TCP, Packet


class Track:
    """A sequence that opens its door, or closes it."""

    __slots__ = ("codes", "door", "finish", "first", "length", "mask", "sequence", "target", "value")

    def __init__(self, door: Door, sequence: Sequence, finish: type[OpenDoor | CloseDoor]) -> None:
        self.door = door
        self.sequence = sequence
        self.codes = tuple(port.code for port in sequence)
        self.first = self.codes[0]
        self.length = len(self.codes)
        self.finish = finish
        self.target = door.target.packed if door.target else None
        # Of the door's TCP flags; asked of every packet of a flood, so without the way there.
        self.mask, self.value = door.tcpflags.mask, door.tcpflags.value

    def hears(self, packet: Packet) -> bool:
        """Whether the packet is anything at all to this door."""
        if self.target is not None and packet.target != self.target:
            return False
        return packet.protocol != TCP or packet.flags & self.mask == self.value

    @property
    def identity(self) -> tuple[Door, Sequence, type[OpenDoor | CloseDoor]]:
        """What has to stay the same for attempts to go on: all but which other one-time sequences count as well."""
        one_time = self.door.one_time and replace(self.door.one_time, window=(), left=0)
        return (replace(self.door, one_time=one_time), self.sequence, self.finish)

    def finished(self, source: IPAddress) -> OpenDoor | CloseDoor:
        """Return what the last knock brings about."""
        if self.finish is OpenDoor:
            return OpenDoor(self.door.name, source, self.sequence)
        return CloseDoor(self.door.name, source)
