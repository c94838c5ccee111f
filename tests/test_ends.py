"""When a daemon takes a hole for over, whatever becomes of the clock that its date is of."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from nfknock.core.model import Hole, Opening, Port
from nfknock.daemon.ends import Ends

HOUR = 3600.0


def left_of(opened_at: float, closes_at: float, now: float) -> float:
    """Return what a daemon that sees such a hole for the first time takes to be left of it."""
    ends = Ends()
    opens = (Opening(Port(22)),)
    hole = Hole(door="ssh", source=ip_address("192.0.2.2"), opens=opens, opened_at=opened_at, closes_at=closes_at)
    ends.see([hole], now)
    over_at = ends.next()
    assert over_at is not None
    return over_at - time.monotonic()


@pytest.mark.parametrize(
    ("opened_at", "closes_at", "left"),
    [
        (990.0, 1020.0, 20.0),
        # The clock was set back, and the rule's date is all that there is: as much as it had in all.
        (HOUR + 990, HOUR + 1020, 30.0),
        # The kernel counts what is left; the beginning is still the clock's of before.
        (HOUR + 990, 1020.0, 20.0),
    ],
)
def test_what_is_left(opened_at: float, closes_at: float, left: float) -> None:
    assert left_of(opened_at, closes_at, now=1000.0) == pytest.approx(left, abs=2)
