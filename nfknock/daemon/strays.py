"""The reader of strays, which doors can do without: where another program has its group, it is tried again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from nfknock.core.plan import Plan, ReaderKind
from nfknock.daemon import logs
from nfknock.daemon.intake import since_boot
from nfknock.errors import NfknockError
from nfknock.readers import Reader, make_stray_reader

_RETRY_AFTER = 5.0


class StrayWatch:
    """What reads the strays that a plan asks for, if anything does."""

    def __init__(self, read: Callable[[], None]) -> None:
        """`read` is called when strays are there."""
        self.reader: Reader | None = None
        self.trouble: str | None = None
        """Why none are read though the plan asks for them."""
        self._read = read
        self._plan: Plan
        self._where: tuple[ReaderKind, int] | None = None
        """Of what is open, whatever was asked for."""
        self._try_at = math.inf
        self._losses = logs.Losses("packets to closed ports")

    def open(self, plan: Plan) -> None:
        """Open the reader that this plan asks for. Raises ReaderError."""
        reader = make_stray_reader(plan)
        if reader is not None:
            reader.open()
        self.reader, self._where, self._plan = reader, _where(plan), plan

    def listen(self) -> None:
        """Have `read` called from now on."""
        if self.reader is not None:
            asyncio.get_running_loop().add_reader(self.reader.fileno(), self._read)

    def suits(self, plan: Plan) -> bool:
        """Whether what is open, be it nothing, is what this plan asks for."""
        return self._where == _where(plan)

    def end(self) -> None:
        """Have nothing open until `follow` is called."""
        self._try_at = math.inf
        if self.reader is not None:
            asyncio.get_running_loop().remove_reader(self.reader.fileno())
            self.reader.close()
            self.reader = self._where = None

    def follow(self, plan: Plan) -> None:
        """Read what this plan asks for; where that fails, say so and try it again. After `end`."""
        self._plan = plan
        if not self._tries():
            # Doors work without; that is better than a daemon that ends.
            logs.log.error("port scans are not seen: %s", self.trouble)

    def tick(self, now: float) -> None:
        """Try again what failed, and say what was lost; to be called once a second, at `since_boot()`."""
        if now >= self._try_at:
            self._tries()
        self._losses.say(self.count_lost(), now)

    def count_lost(self) -> int:
        """Return how many strays the kernel had to drop since what is open was."""
        return self.reader.count_lost() if self.reader else 0

    def _tries(self) -> bool:
        trouble, self.trouble = self.trouble, None
        try:
            self.open(self._plan)
        except NfknockError as exc:
            self.trouble = str(exc)
            self._try_at = since_boot() + _RETRY_AFTER
            return False
        self._try_at = math.inf
        self.listen()
        if trouble and self.reader:
            logs.log.info("port scans are seen again")
        return True


def _where(plan: Plan) -> tuple[ReaderKind, int] | None:
    """Where strays come from, and who reads them, which goes by who reads knocks; None if nobody does."""
    return (plan.reader, plan.strays.group) if plan.strays else None
