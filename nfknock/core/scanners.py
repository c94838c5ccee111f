"""Who hits many closed ports in a short time, and so is ignored for a while.

Memory is bounded: so many are watched, so many are ignored. When there is no room the one that was heard of longest ago
goes. A scanner is heard of again at once; whoever floods us with made-up sources forgets it for a moment at most.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

# Together with the ports of each, at most a few MiB.
MOST_SUSPECTS = 4_096
MOST_IGNORED = 8_192
# So that one source is one line a minute, whatever it does.
SAID_AGAIN_AFTER = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How many different closed `ports` in how many seconds make a scanner; 0 ports: nobody is one.

    A scanner is ignored until it has hit no closed port for `ignore_timeout` seconds.
    """

    ports: int = 20
    within: float = 10.0
    ignore_timeout: float = 60.0


@dataclass(slots=True)
class _Suspect:
    since: float
    # There are few of them; a set would take twenty times as much memory.
    codes: array[int] = field(default_factory=lambda: array("I"))


@dataclass(slots=True)
class _Ignored:
    until: float
    said_at: float


class Scanners:
    """Counts the closed ports that each source hits."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()
        self._ignored: OrderedDict[bytes, _Ignored] = OrderedDict()

    def ignores(self, source: bytes, now: float) -> bool:
        """Whether what this source (packed) sends is nothing."""
        ignored = self._ignored.get(source)
        return ignored is not None and now < ignored.until

    def count(self, now: float) -> int:
        """Return how many are ignored."""
        return sum(now < each.until for each in self._ignored.values())

    def note(self, source: bytes, code: int, now: float) -> bool:
        """Take note that a source hit a closed port (`Packet.code`).

        True if it is ignored from now on, and that is news.
        """
        if not self.thresholds.ports:
            return False
        if self.ignores(source, now):
            self._ignored[source].until = now + self.thresholds.ignore_timeout
            self._ignored.move_to_end(source)
            return False
        suspect = self._suspects.get(source)
        if suspect is None or now - suspect.since > self.thresholds.within:
            suspect = self._suspect(source, now)
        if code not in suspect.codes:
            suspect.codes.append(code)
        return len(suspect.codes) >= self.thresholds.ports and self._ignore(source, now)

    def forget(self, now: float) -> None:
        """Forget those of whom nothing is to be known any more."""
        while self._suspects and now - next(iter(self._suspects.values())).since > self.thresholds.within:
            self._suspects.popitem(last=False)
        while self._ignored:
            first = next(iter(self._ignored.values()))
            if now < max(first.until, first.said_at + SAID_AGAIN_AFTER):
                break
            self._ignored.popitem(last=False)

    def _suspect(self, source: bytes, now: float) -> _Suspect:
        self._suspects.pop(source, None)
        if len(self._suspects) >= MOST_SUSPECTS:
            self._suspects.popitem(last=False)
        suspect = self._suspects[source] = _Suspect(now)
        return suspect

    def _ignore(self, source: bytes, now: float) -> bool:
        del self._suspects[source]
        before = self._ignored.pop(source, None)
        if len(self._ignored) >= MOST_IGNORED:
            self._ignored.popitem(last=False)
        is_news = before is None or now - before.said_at >= SAID_AGAIN_AFTER
        said_at = now if before is None or is_news else before.said_at
        self._ignored[source] = _Ignored(now + self.thresholds.ignore_timeout, said_at)
        return is_news
