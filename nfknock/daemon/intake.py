"""Reads knocks and strays in turns, so that as much is known of their order as can be.

Knocks are read first, however many strays there are, and then every stray that is there, which counts first. So what
strayed before a knock reached the kernel counts before it. And what strayed before a reading of knocks that found all
there were came before every knock that a later reading finds.

Of knocks that waited while nobody read at all nothing is known: not when they came, and not what strayed between them
and found no room. So these are not heard.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from nfknock.core.decisions import Command
from nfknock.core.packet import Packet
from nfknock.core.tracker import Tracker
from nfknock.daemon import logs
from nfknock.readers import QUEUE_LENGTH, Reader

# Seconds without a sign of life, of which one may be the pause between two. A busy machine takes a program off its CPU
# for tenths of a second, and who knocked then is to be let in. Of two to three seconds a sequence is not kept open
# much beyond its time, and buffers hold the strays that the kernel lets through. Whoever knocked into more than that
# has long seen that nothing opens.
AWAY = 3.0
# In a queue, or in a full buffer of the smallest copies, no more than eight times this are waiting.
_READINGS_OF_A_BACKLOG = 8


def since_boot() -> float:
    """Return the seconds since the machine was started, those included in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Intake:
    """The order in which a tracker gets what readers have."""

    def __init__(self, tracker: Tracker, clock: Callable[[], float] = since_boot) -> None:
        self.late = 0
        """Knocks that waited while nobody read, and were not heard."""
        self._tracker = tracker
        self._clock = clock
        self._all_heard_until = -math.inf
        self._last_stray_at = -math.inf
        self._beat_at = clock()
        self._away_for = 0.0
        self._late_until = -math.inf

    @property
    def is_settled(self) -> bool:
        """Whether reading once more would tell nothing about strays that were read."""
        return self._last_stray_at < self._all_heard_until

    @property
    def was_away(self) -> bool:
        """Whether nobody read for so long that what waits has to be read now, and not to be heard."""
        return self._away_for > AWAY

    def beat(self) -> None:
        """Give a sign of life; to be called once a second, packets or not."""
        now = self._clock()
        self._away_for = max(self._away_for, now - self._beat_at)
        self._beat_at = now

    def read(self, reader: Reader, stray_reader: Reader | None) -> Iterator[Command]:
        """Have the tracker take what is there. Raises ReaderError."""
        now = self._clock()
        self._tracker.settle(self._all_heard_until)
        knocks: Sequence[Packet] = reader.read()
        # It may have been just now that we were stopped.
        self.beat()
        if self.was_away:
            self._leave_out(reader, len(knocks))
        if now <= self._late_until:
            self.late += len(knocks)
            knocks = ()
        strays = stray_reader.read(QUEUE_LENGTH) if stray_reader else ()
        for packet in strays:
            self._last_stray_at = now
            yield from self._tracker.receive_stray(packet, now)
        for packet in knocks:
            yield from self._tracker.receive(packet, now)
        if reader.is_drained:
            self._all_heard_until = now - reader.lag

    def _leave_out(self, reader: Reader, count: int) -> None:
        """Read all that waits, and what is on its way to the reader; `count` of it has been read."""
        for _ in range(_READINGS_OF_A_BACKLOG):
            if reader.is_drained:
                break
            more = len(reader.read(QUEUE_LENGTH))
            self.late += more
            count += more
        if count:
            logs.log.warning(
                "nothing was read for %.0f s; %d knocks that waited meanwhile were not heard", self._away_for, count
            )
        self._beat_at = self._clock()
        self._away_for = 0.0
        self._late_until = self._beat_at + reader.lag
