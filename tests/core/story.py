"""Tells a story to a tracker: who knocks where and when, and what comes of it."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import count
from math import inf

from nfknock.core.decisions import CloseDoor, OpenDoor, SequenceTimeout, SourceIgnored, StageReached
from nfknock.core.model import BARE_SYN, Door, Opening, Port, TcpFlags, as_source
from nfknock.core.packet import Packet
from nfknock.core.scanners import Thresholds
from nfknock.core.tracker import Tracker

FIN, SYN, RST, PSH, ACK, URG = (1 << bit for bit in range(6))
ALICE, BOB = "192.0.2.2", "192.0.2.3"
HERE = "192.0.2.1"


def door(
    name: str = "ssh",
    *sequence: str,
    seq_timeout: float = 5,
    tcpflags: str | None = None,
    target: str | None = None,
    close: tuple[str, ...] = (),
    opens: str = "22/tcp",
) -> Door:
    """Make a door; without a sequence it has the one that everybody knows."""
    return Door(
        name=name,
        sequence=tuple(map(Port.parse, sequence or ("7000", "8000", "9000"))),
        opens=(Opening(Port.parse(opens)),),
        seq_timeout=seq_timeout,
        tcpflags=BARE_SYN if tcpflags is None else TcpFlags.parse(tcpflags),
        target=as_source(target) if target else None,
        close_sequence=tuple(map(Port.parse, close)),
    )


class Story:
    """A tracker, a clock that only the story moves, and what was decided so far."""

    def __init__(
        self,
        *doors: Door,
        allowed: tuple[str, ...] = (),
        most_sources: int = 1000,
        most_newcomers: int = 1024,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.tracker = Tracker(
            doors, map(Port.parse, allowed), thresholds, most_sources=most_sources, most_newcomers=most_newcomers
        )
        self.opened: list[tuple[str, str]] = []
        self.sequences: list[tuple[Port, ...]] = []
        self.closed: list[tuple[str, str]] = []
        self.stages: list[tuple[str, int]] = []
        self.timeouts: list[int] = []
        self.ignored: list[str] = []
        self.now = 0.0
        self._fresh = count(40_000)

    def at(self, now: float) -> Story:
        """Move the clock."""
        self.now = now
        return self

    def knock(
        self,
        *ports: str,
        source: str = ALICE,
        target: str = HERE,
        flags: int = SYN,
        source_port: int | None = None,
        sequence_number: int | None = None,
    ) -> Story:
        """Send one packet to each port, each of a new connection unless it is said whose."""
        for text in ports:
            packet = self._packet(text, source, target, flags, source_port, sequence_number)
            self._note(self.tracker.receive(packet, self.now))
        return self

    def stray(self, *ports: str, source: str = ALICE, target: str = HERE, flags: int = SYN) -> Story:
        """Send one packet to each port by the queue of those that are no knocks."""
        for text in ports:
            self._note(self.tracker.receive_stray(self._packet(text, source, target, flags), self.now))
        return self

    def _packet(
        self,
        text: str,
        source: str,
        target: str,
        flags: int,
        source_port: int | None = None,
        sequence_number: int | None = None,
    ) -> Packet:
        port, fresh = Port.parse(text), next(self._fresh)
        is_tcp = port.protocol == "tcp"
        return Packet(
            source=ip_address(source).packed,
            target=ip_address(target).packed,
            protocol=port.code >> 16,
            source_port=fresh % 65536 if source_port is None else source_port,
            port=port.number,
            sequence_number=(fresh if sequence_number is None else sequence_number) if is_tcp else 0,
            flags=flags if is_tcp else 0,
        )

    def settle(self) -> Story:
        """Have every knock read that there was."""
        self.tracker.settle(before=inf)
        return self

    def tick(self) -> Story:
        """Let the tracker end what is late."""
        self._note(self.tracker.expire(self.now))
        return self

    def _note(self, commands: object) -> None:
        assert isinstance(commands, list)
        for command in commands:
            match command:
                case OpenDoor():
                    self.opened.append((str(command.source), command.door))
                    self.sequences.append(command.sequence)
                case CloseDoor():
                    self.closed.append((str(command.source), command.door))
                case StageReached():
                    self.stages.append((command.door, command.stage))
                case SequenceTimeout():
                    self.timeouts.append(command.stage)
                case SourceIgnored():
                    self.ignored.append(str(command.source))
