"""What the tracker counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What came in since the start."""

    knocks: int = 0
    """Packets that advanced or began an attempt."""
    strays: int = 0
    """Packets to closed ports that did neither."""
    impossible: int = 0
    """First knocks from addresses that nobody can have."""
    ignored: int = 0
    """Packets of sources that are ignored."""
    evicted: int = 0
    """Sources whose knocks had to be forgotten, or were not taken up, for want of room."""
