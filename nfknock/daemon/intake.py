"""Reads knocks and strays in turns, so that as much is known of their order as can be.

Knocks are read first, however many strays there are, and then every stray that is there, which counts first. So what
strayed before a knock reached the kernel counts before it. And what strayed before a reading of knocks that found all
there were came before every knock that a later reading finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nfknock.core.decisions import Command
from nfknock.core.tracker import Tracker
from nfknock.readers import QUEUE_LENGTH, Reader


class Intake:
    """The order in which a tracker gets what readers have."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._all_heard_until = -math.inf
        self._last_stray_at = -math.inf

    @property
    def is_settled(self) -> bool:
        """Whether reading once more would tell nothing about strays that were read."""
        return self._last_stray_at < self._all_heard_until

    def read(self, reader: Reader, stray_reader: Reader | None, now: float) -> Iterator[Command]:
        """Have the tracker take what is there. Raises ReaderError."""
        self._tracker.settle(self._all_heard_until)
        knocks = reader.read()
        strays = stray_reader.read(QUEUE_LENGTH) if stray_reader else ()
        for packet in strays:
            self._last_stray_at = now
            yield from self._tracker.receive_stray(packet, now)
        for packet in knocks:
            yield from self._tracker.receive(packet, now)
        if reader.is_drained:
            self._all_heard_until = now - reader.lag
