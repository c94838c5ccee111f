"""Work that blocks, beside the loop, in threads that do not keep the program from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


class NoRoomError(Exception):
    """The system has no room for another thread or process just now; later it may."""


async def in_thread(function: Callable[[], _Result]) -> _Result:
    """Run a function in a thread of its own, which does not keep the program from ending. Raises NoRoomError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def tell(set_: Callable[[], None]) -> None:
        # Whoever waited may have gone, and the loop with it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else set_())

    def work() -> None:
        try:
            result = function()
        except BaseException as exc:  # noqa: BLE001  (it is raised again where it is waited for)
            error = exc
            tell(lambda: done.set_exception(error))
        else:
            tell(lambda: done.set_result(result))

    try:
        threading.Thread(target=work, name="aside", daemon=True).start()
    except RuntimeError as exc:
        raise NoRoomError(str(exc)) from exc
    return await done
