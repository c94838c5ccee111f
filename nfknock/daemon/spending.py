"""Marks one-time sequences as used, one after the other and beside the loop, before anything opens for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from nfknock import onetime
from nfknock.core.model import Door, IPAddress, Sequence
from nfknock.core.onetime import Line
from nfknock.daemon import logs
from nfknock.daemon.threads import NoRoomError, in_thread
from nfknock.errors import OneTimeError

# A disk that hangs must not keep the daemon from ending.
_LAST_TIMEOUT = 5.0


class Spender:
    """Lets a source in by `let_in` when its sequence is marked on the disk, and tells `follow` what is left."""

    def __init__(self, let_in: Callable[[Door, IPAddress], None], follow: Callable[[str, list[Line]], None]) -> None:
        self.paused = asyncio.Lock()
        """Held while a sequence is marked; whoever holds it keeps sequences from being marked."""
        self._let_in = let_in
        self._follow = follow
        self._tasks: set[asyncio.Task[None]] = set()

    def spend(self, door: Door, source: IPAddress, sequence: Sequence) -> None:
        """Mark the sequence that a source knocked, then let it in."""
        task = asyncio.get_running_loop().create_task(self._spend(door, source, sequence))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Finish what was begun."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_TIMEOUT)

    async def _spend(self, door: Door, source: IPAddress, sequence: Sequence) -> None:
        assert door.one_time is not None
        file, look_ahead = Path(door.one_time.path), door.one_time.look_ahead
        async with self.paused:
            try:
                # The file decides, not what is remembered here: it survives us, and others may mark in it.
                _, lines = await in_thread(
                    lambda: onetime.spend(file, sequence, look_ahead=look_ahead, closing=door.close_sequence)
                )
            except (OneTimeError, NoRoomError) as exc:
                logs.log.error("%s: %s: not opened: %s", source, door.name, exc)
                return
            self._let_in(door, source)
            self._follow(door.name, lines)
