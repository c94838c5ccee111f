"""What is not known of the order of a source's packets.

Knocks and strays come by different ways. Whatever stray came before a knock has been read when that knock is, but not
in the order in which they came. So a stray counts as if it had come before and after every knock, until whoever reads
them says that every knock from before it has been read too, and for a moment at most.
"""

from __future__ import annotations

from collections import OrderedDict

# Seconds: longer than a batch of knocks waits to be read, shorter than anybody notices.
UNSURE_TIMEOUT = 0.1
# The kernel lets through few more strays than that at once, and an eighth of it in this time.
_MOST_SOURCES = 4_096
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
