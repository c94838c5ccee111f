"""Reads an NFLOG group through a process without rights, which alone sees what strangers sent.

The daemon binds the group, keeps the socket and waits for it; what comes by it is taken apart elsewhere. A process that
ends or hangs is replaced by another one on the same socket: what it had in hand is lost, and counted, as the next one
is told which number to expect. One that says what cannot be is not believed, and the daemon ends: fail closed.

Why: docs/design/0018-read-apart.md.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque

from nfknock.apart import records
from nfknock.core.packet import Packet
from nfknock.core.plan import Answer
from nfknock.errors import ReaderError
from nfknock.readers import PACKETS_AT_ONCE, ReaderCounters
from nfknock.readers.child import Child, LostChildError
from nfknock.readers.nflog import NflogReader

# Somebody who can end it with a packet will send more of them.
_MOST_LOST, _LOST_WITHIN = 5, 60.0
_WHO = "the process that takes packets apart"
_NONSENSE = "answered what no answer can be, and is not believed"

_log = logging.getLogger("nfknock")


class ApartReader:
    """One NFLOG group, for both families."""

    lag = NflogReader.lag

    def __init__(self, group: int, answer: Answer = "drop", *, key: str = "`queue` under [reader]") -> None:
        """`key` is where the group is configured."""
        self.counters = ReaderCounters()
        self.answer: Answer = answer
        self._reading = f"reading NFLOG group {group}"
        self._bound = NflogReader(group, key=key)
        self._child: Child | None = None
        self._next_number = 0
        self._is_drained = False
        self._lost_at: deque[float] = deque()
        self._ready: select.epoll | None = None
        self._failure: ReaderError | None = None

    def open(self) -> None:
        self._bound.open()
        try:
            self._ready = select.epoll()
            self._ready.register(self._bound, select.EPOLLIN)
            self._start()
        except (LostChildError, records.NonsenseError) as exc:
            self.close()
            reason = exc if isinstance(exc, LostChildError) else _NONSENSE
            raise ReaderError(f"{self._reading}: {_WHO} {reason}") from exc
        except OSError as exc:
            self.close()
            raise self._fail(os.strerror(exc.errno or 0).lower()) from exc

    @property
    def child_pid(self) -> int | None:
        """Return the number of the process that takes packets apart, None between two."""
        return self._child.pid if self._child else None

    @property
    def port(self) -> int:
        return self._bound.port

    @property
    def is_drained(self) -> bool:
        return self._is_drained

    def fileno(self) -> int:
        # Readable when there are packets, and when the process has ended: somebody has to take it in.
        assert self._ready is not None  # opened
        return self._ready.fileno()

    def read(self, most: int = PACKETS_AT_ONCE) -> list[Packet]:
        assert self._ready is not None  # opened
        if self._failure is not None:
            raise self._failure
        packets: list[Packet] = []
        left = most
        # Where there is nothing, nobody has to be woken to say so.
        while left > 0 and self._ready.poll(0):
            asked = min(left, records.MOST_AT_ONCE)
            taken, self._next_number = self._ask(asked)
            packets += taken.packets
            self.counters.unreadable += taken.unreadable
            self.counters.lost += taken.lost
            got = len(taken.packets) + taken.unreadable
            if got < asked:
                break
            left -= got
        self._is_drained = not self._ready.poll(0)
        return packets

    def count_lost(self) -> int:
        return self.counters.lost

    def close(self) -> None:
        if self._ready is not None:
            self._ready.close()
        # It holds the socket as well: the group is free when both have let go.
        if self._child is not None:
            self._child.end()
        self._child = self._ready = None
        self._bound.close()

    def _start(self) -> Child:
        assert self._ready is not None  # opened
        self._child = Child(self._bound.fileno())
        # Hanging up is always told. What it says without being asked is not waited for.
        self._ready.register(self._child, 0)
        return self._child

    def _ask(self, most: int) -> records.Answer:
        while True:
            try:
                return (self._child or self._start()).ask(most, self._next_number)
            except LostChildError as exc:
                self._replace(exc)
            except records.NonsenseError:
                raise self._fail(f"{_WHO} {_NONSENSE}") from None
            except OSError as exc:
                raise self._fail(os.strerror(exc.errno or 0).lower()) from exc

    def _replace(self, loss: LostChildError) -> None:
        """Make room for another one. Raises ReaderError when too many were lost."""
        assert self._ready is not None  # opened
        if self._child is not None:
            self._ready.unregister(self._child)
            self._child.end()
            self._child = None
        now = time.monotonic()
        self._lost_at.append(now)
        while self._lost_at[0] < now - _LOST_WITHIN:
            self._lost_at.popleft()
        if len(self._lost_at) > _MOST_LOST:
            raise self._fail(f"{_WHO} was lost too often within a minute; at last it {loss}") from loss
        _log.warning("%s: %s %s; another one takes its place", self._reading, _WHO, loss)

    def _fail(self, reason: str) -> ReaderError:
        """Read nothing any more."""
        self._failure = ReaderError(f"{self._reading}: {reason}")
        return self._failure
