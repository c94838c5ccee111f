"""Whether the way we stand still fits the host, whose ruleset others change; looked at again only when somebody did."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nfknock.backends.nftables import standing
from nfknock.backends.nftables.standing import Found
from nfknock.core.plan import Plan
from nfknock.host import interfaces, nftread

# To take every port through every rule takes long where strangers can make rules grow, as with a ban for each of them.
_SHARE_OF_TIME = 0.05


class Fit:
    """What does not fit, as it was when it was last found out."""

    def __init__(self, attach: str) -> None:
        self._attach = attach
        self._about: object = None
        self._lines: list[str] = []
        self._not_before = 0.0
        """On the clock of time.monotonic."""

    def misfits(self, found: Found, plan: Plan, generation: int | None) -> list[str]:
        """Say what does not fit in a ruleset, which was read after its generation was. Raises BackendError.

        Found out again when somebody changed the ruleset, and not so often that it takes much of the time.
        """
        about = (generation, plan, tuple(interfaces.entrances(plan.interfaces)))
        began_at = time.monotonic()
        if (generation is not None and about == self._about) or began_at < self._not_before:
            return self._lines
        self._lines = list(_misfits(found, plan, self._attach))
        self._about = about
        ended_at = time.monotonic()
        self._not_before = ended_at + (ended_at - began_at) / _SHARE_OF_TIME
        return self._lines

    def forget(self) -> None:
        """Take it that everything fits, as it does when it was just put in place."""
        self._about, self._lines = None, []


def _misfits(found: Found, plan: Plan, attach: str) -> Iterator[str]:
    fitting, now = standing.fitting(found, plan, attach), standing.standing(found)
    for place in fitting.entrances:
        if place not in now.entrances:
            is_asked_for = place in standing.asked_for(found, attach)
            yield f"{place} has no entrance" if is_asked_for else f"{place} drops what is let in"
    for family in sorted(fitting.shut - now.shut):
        yield f"no chain of the host's drops what nobody lets in ({family})"


def generation() -> int | None:
    """Return the number that the kernel counts up with every change of the ruleset; None where it does not tell."""
    try:
        return nftread.generation()
    except OSError:
        return None
