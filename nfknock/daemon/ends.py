"""When holes end, by a clock that nobody sets.

The date in a hole's rule is the record, for the kernel and for whoever comes after us. But a wall clock that is set
back makes every date later. So the daemon remembers, for each hole that it opened or saw, how long that was to last
from then on, and the earlier of both ends counts. Seconds here are `time.monotonic`'s, but for what is named `now`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from nfknock.core.model import Hole, IPAddress

Key = tuple[str, IPAddress]

# Where the clocks agree the date comes first: a sweep looks again under the lock, and leaves what was just renewed.
_GRACE = 0.5
# A date is read from a rule in milliseconds.
_SAME_DATE = 0.01


class Ends:
    """The ends of holes that have one."""

    def __init__(self) -> None:
        self._ends: dict[Key, tuple[float, float]] = {}
        """For each hole its date, and its end."""

    def see(self, holes: Iterable[Hole], now: float) -> None:
        """Take these for all the holes that there are at `now` (epoch seconds)."""
        self._ends = {hole.key: (hole.closes_at, self._end(hole, now)) for hole in holes if hole.closes_at is not None}

    def renew(self, hole: Hole, now: float, open_timeout: float) -> None:
        """Take a hole for knocked open at `now`: it lasts from here for `open_timeout`, whatever its date says."""
        if hole.closes_at is None:
            self._ends.pop(hole.key, None)
            return
        self._ends[hole.key] = (hole.closes_at, max(self._end(hole, now), time.monotonic() + open_timeout))

    def over(self) -> set[Key]:
        """Return the holes whose time is over."""
        ticks = time.monotonic()
        return {key for key, (_date, end) in self._ends.items() if end + _GRACE <= ticks}

    def has_come(self, key: Key) -> bool:
        """Whether a hole's end has come, be it just now."""
        return key in self._ends and self._ends[key][1] <= time.monotonic()

    def next(self) -> float | None:
        """Return when the first of them is over."""
        return min((end + _GRACE for _date, end in self._ends.values()), default=None)

    def _end(self, hole: Hole, now: float) -> float:
        assert hole.closes_at is not None
        date, end = self._ends.get(hole.key, (0.0, 0.0))
        if abs(date - hole.closes_at) < _SAME_DATE:
            return end
        left, whole = hole.closes_at - now, hole.closes_at - hole.opened_at
        # A clock that was set back before we saw it makes what is left look like more than there ever was; where the
        # kernel counts what is left, only its beginning is off.
        return time.monotonic() + (min(left, whole) if whole > 0 else left)
