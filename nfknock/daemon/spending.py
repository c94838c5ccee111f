"""Marks one-time sequences as used, one after the other and beside the loop, before anything opens for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

from nfknock import onetime
from nfknock.core.model import Door, IPAddress, Sequence
from nfknock.core.onetime import Line
from nfknock.daemon import logs
from nfknock.daemon.threads import NoRoomError, in_thread
from nfknock.errors import NfknockError

# A disk that hangs must not keep the daemon from ending.
_LAST_TIMEOUT = 5.0
_DISK_TIMEOUT = 15.0


class Spender:
    """Lets a source in by `let_in` when its sequence is marked on the disk, and tells `follow` what is left."""

    def __init__(
        self,
        find: Callable[[str], Door | None],
        let_in: Callable[[Door, IPAddress], None],
        follow: Callable[[str, list[Line]], None],
    ) -> None:
        self.paused = asyncio.Lock()
        """Held while a sequence is marked; whoever holds it keeps sequences from being marked."""
        self._find = find
        self._let_in = let_in
        self._follow = follow
        self._tasks: set[asyncio.Task[None]] = set()

    def spend(self, door: Door, source: IPAddress, sequence: Sequence) -> None:
        """Mark the sequence that a source knocked, then let it in."""
        self._spawn(self._spend(door, source, sequence))

    def then(self, action: Callable[[], None]) -> None:
        """Do something after all that was asked for before: a closing must not overtake an opening."""
        self._spawn(self._then(action))

    async def stop(self) -> None:
        """Finish what was begun."""
        if not self._tasks:
            return
        _, pending = await asyncio.wait(self._tasks, timeout=_LAST_TIMEOUT)
        if pending:
            logs.log.error("%d one-time knocks are given up: marking them takes too long", len(pending))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _then(self, action: Callable[[], None]) -> None:
        async with self.paused:
            action()

    async def _spend(self, asked: Door, source: IPAddress, sequence: Sequence) -> None:
        async with self.paused:
            door = self._find(asked.name)
            if door is None or door.one_time is None:
                logs.log.error("%s: %s: not opened: the configuration has changed meanwhile", source, asked.name)
                return
            file, look_ahead, closing = Path(door.one_time.path), door.one_time.look_ahead, door.close_sequence
            try:
                async with asyncio.timeout(_DISK_TIMEOUT):
                    # The file decides, not what is remembered here: it survives us, and others may mark in it.
                    _, lines = await in_thread(
                        lambda: onetime.spend(file, sequence, look_ahead=look_ahead, closing=closing)
                    )
            except TimeoutError:
                logs.log.error("%s: %s: not opened: marking in %s takes too long", source, door.name, file)
            except (NfknockError, NoRoomError, OSError) as exc:
                logs.log.error("%s: %s: not opened: %s", source, door.name, exc)
            else:
                self._let_in(door, source)
                self._follow(door.name, lines)
