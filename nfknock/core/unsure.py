"""What is not known of the order of a source's packets.

Knocks and strays come by different ways. Whatever stray came before a knock has been read when that knock is, but not
in the order in which they came. So a stray counts as if it had come before and after every knock, until whoever reads
them says that every knock from before it has been read too. The time-out is for a flood in which nobody ever can: by
then every knock that waited has been read, or was dropped.
"""

from __future__ import annotations

from collections import OrderedDict

# Seconds. A full queue or buffer is read in half a second, and in three times that on a machine with much else to do.
UNSURE_TIMEOUT = 5.0
# All that the kernel lets through in this time, and what it lets through at once before (STRAYS_A_SECOND).
_MOST_SOURCES = 32_768
_NOTHING: frozenset[int] = frozenset()


class Unsure:
    """The sources whose strays came just now, and at which tracks those count."""

    def __init__(self) -> None:
        self._sources: OrderedDict[bytes, tuple[float, frozenset[int]]] = OrderedDict()
        """When the last stray of a source was read, and where it counts; in the order in which those were read."""

    def note(self, source: bytes, tracks: frozenset[int], now: float) -> None:
        """Take note of a stray."""
        tracks |= self.tracks(source, now)
        self._sources.pop(source, None)
        self._sources[source] = (now, tracks)
        self.settle(now - UNSURE_TIMEOUT)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)

    def settle(self, before: float) -> None:
        """From now on, what was read before that instant came before every knock."""
        while self._sources and next(iter(self._sources.values()))[0] < before:
            self._sources.popitem(last=False)

    def tracks(self, source: bytes, now: float) -> frozenset[int]:
        """Return the tracks at which no knock of this source joins another just now."""
        at, tracks = self._sources.get(source, (now, _NOTHING))
        return tracks if now - at < UNSURE_TIMEOUT else _NOTHING

    def clear(self) -> None:
        """Forget everything."""
        self._sources.clear()
