"""What is written beside each part of a hole, whoever writes it: the firewall is the record.

nfknock hole ssh opened 2026-11-21T04:00:00.123Z closes 2026-11-21T04:00:30.123Z
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from nfknock.core.model import Hole

_LABEL = re.compile(r"nfknock hole (?P<door>\S+) opened (?P<opened>\S+) closes (?P<closes>\S+)")
_NEVER = "never"
# Where a label's end is so much later than the one that the kernel counts down to, the clock was set back meanwhile.
_TOLERANCE = 10.0


def label_of(hole: Hole) -> str:
    """Return what is written beside each part of a hole; at most 120 characters."""
    return f"nfknock hole {hole.door} opened {instant(hole.opened_at)} closes {instant(hole.closes_at)}"


def read_label(label: str) -> tuple[str, float, float | None] | None:
    """Return the door, the opening and the closing time that a label tells; None if it is none of ours."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    try:
        opened_at, closes_at = _parse(match["opened"]), _parse(match["closes"])
    except ValueError:
        return None
    return None if opened_at is None else (match["door"], opened_at, closes_at)


def counted_end(closes_at: float | None, left: float | None, now: float) -> float | None:
    """Return when a hole ends of which a label says one thing and the kernel that so many seconds are left."""
    if closes_at is None or left is None or closes_at - now <= left + _TOLERANCE:
        return closes_at
    return now + left


def instant(at: float | None) -> str:
    """Return a time (epoch seconds) as labels have it."""
    if at is None:
        return _NEVER
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parse(text: str) -> float | None:
    return None if text == _NEVER else datetime.fromisoformat(text).timestamp()
