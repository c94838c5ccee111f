"""What systemd is told of the daemon, in the words of sd_notify(3), where it is listening."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable


def notify(message: str) -> None:
    """Tell the supervisor, if there is one: `READY=1`, `STOPPING=1` and the like."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
        connection.send(message.encode())


async def feed_watchdog(has_stalled: Callable[[float], bool]) -> None:
    """Let the supervisor know that this loop turns, as long as nothing else has stalled for as long as it waits."""
    within = _watchdog_timeout()
    while within is not None:
        if not has_stalled(within):
            notify("WATCHDOG=1")
        await asyncio.sleep(within / 4)


def _watchdog_timeout() -> float | None:
    """Return within how many seconds the supervisor wants to hear of us again; None if it does not watch us."""
    # A child of the daemon that is watched inherits the variables, but it is not meant.
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) else None
