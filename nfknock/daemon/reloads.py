"""Reloads: one at a time, however many are asked for, and whoever asked may learn what became of theirs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nfknock.daemon import logs, supervisor
from nfknock.errors import NfknockError


class Reloads:
    """Has the configuration taken up anew when that is asked for."""

    def __init__(self, path: Path, take_up: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._take_up = take_up
        self._is_asked = asyncio.Event()
        self._begun = 0
        self._done = 0
        self._refused: str | None = None

    def ask(self) -> None:
        """Reload soon; once, for all who ask before that begins."""
        self._is_asked.set()

    def describe(self) -> dict[str, Any]:
        """Return how many reloads have begun, how many of them have ended, and why the last one was refused."""
        return {"begun": self._begun, "done": self._done, "refused": self._refused}

    async def run(self) -> None:
        """Reload whenever it is asked for, for ever."""
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            self._begun += 1
            supervisor.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._refused = await self._reload()
            self._done = self._begun
            supervisor.notify("READY=1")

    async def _reload(self) -> str | None:
        """Take up the configuration; if anything is wrong everything stays as it is, and the reason is returned."""
        try:
            await self._take_up()
        except NfknockError as exc:
            reason = str(exc)
        except Exception as exc:  # noqa: BLE001  (whatever it is: a daemon that ends guards nothing)
            reason = f"{type(exc).__name__}: {exc}"
        else:
            logs.log.info("reloaded %s", self._path)
            return None
        logs.log.error("the new configuration was refused and the old one stays: %s", reason)
        return reason
