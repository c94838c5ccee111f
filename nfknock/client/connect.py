"""Knocks until a port answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from nfknock.client.attempts import Attempts
from nfknock.client.hosts import Host, name_of, resolve
from nfknock.client.knock import Tell, send_knocks, silent
from nfknock.core.model import Port
from nfknock.errors import ClientError

NextSequence = Callable[[], Sequence[Port]]
"""Gives the sequence of the next round. May raise ClientError, which ends it all."""

# How long a port that is open already gets to answer before we knock. Most of the world is nearer than this; where it
# is not, the knock was needless and nothing else.
_LOOK_TIMEOUT = 0.3
# After each round, seconds between attempts. A hole takes some milliseconds, and the way there and back.
_PAUSES_BETWEEN_ATTEMPTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
# Seconds from one round to the next: a knock may be lost, but one-time sequences are dear, so no more than four rounds
# fit into ten seconds.
_PAUSES_BETWEEN_ROUNDS = (1.5, 3.0, 3.0, 5.0, 8.0)
# Seconds between the knocks of a round. Where packets overtake each other, a slower round arrives in order.
_PAUSES_BETWEEN_KNOCKS = (0.0, 0.02, 0.1, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The port that is to answer, and how to get there. `timeout` is in seconds, from the first round of knocks."""

    host: str
    port: int
    timeout: float = 10.0
    family: socket.AddressFamily = socket.AF_UNSPEC
    source: Host | None = None
    delay: float | None = None
    """Seconds between knocks; None lets it grow from round to round."""


def connect(target: Target, next_sequence: NextSequence, *, tell: Tell = silent) -> socket.socket:
    """Return a connection to a port, after as many rounds of knocks as it takes; none when the port answers already.

    Each round asks `next_sequence` for what to knock; `tell` gets a line for each knock. Raises ClientError when the
    name does not resolve, when nothing can be sent, and when the port does not answer in time.
    """
    hosts = resolve(target.host, target.family)
    with Attempts(hosts, target.port, target.source) as attempts:
        attempts.begin()
        if attempts.are_pending and (answered := attempts.wait(_LOOK_TIMEOUT)):
            return answered
        return _Knocker(target, hosts, attempts, tell).knock_until_answered(next_sequence)


def knock_and_wait(target: Target, next_sequence: NextSequence, *, tell: Tell = silent) -> None:
    """Knock, whether the port answers already or not, and again until it does. Raises ClientError as `connect`."""
    hosts = resolve(target.host, target.family)
    with Attempts(hosts, target.port, target.source) as attempts:
        _Knocker(target, hosts, attempts, tell).knock_until_answered(next_sequence).close()


class _Knocker:
    """Rounds of knocks, with attempts to connect after each."""

    def __init__(self, target: Target, hosts: Sequence[Host], attempts: Attempts, tell: Tell) -> None:
        self._target = target
        self._hosts = hosts
        self._attempts = attempts
        self._tell = tell

    def knock_until_answered(self, next_sequence: NextSequence) -> socket.socket:
        give_up_at = None
        for number, (pause, delay) in enumerate(_rounds(self._target.delay)):
            self._knock(number, next_sequence(), delay)
            # Knocks that somebody wants slow must not use up the time to answer them.
            give_up_at = give_up_at or time.monotonic() + self._target.timeout
            if answered := self._wait(min(time.monotonic() + pause, give_up_at)):
                return answered
            if time.monotonic() >= give_up_at:
                break
        raise ClientError(self._why_not())

    def _knock(self, number: int, sequence: Sequence[Port], delay: float) -> None:
        """Knock at another address each time: nobody knows at which of them the doors are."""
        hosts = self._attempts.reachable
        if not hosts:
            raise ClientError(f"connecting to {self._name()}{self._reasons()}")
        first = number % len(hosts)
        turned = [*hosts[first:], *hosts[:first]]
        send_knocks(turned, sequence, delay=delay, source=self._target.source, tell=self._tell)

    def _wait(self, until: float) -> socket.socket | None:
        for pause in chain(_PAUSES_BETWEEN_ATTEMPTS, repeat(_PAUSES_BETWEEN_ATTEMPTS[-1])):
            if answered := self._attempts.wait(min(pause, until - time.monotonic())):
                return answered
            if time.monotonic() >= until:
                return None
            self._attempts.begin()
        return None

    def _why_not(self) -> str:
        return f"{self._name()} did not answer within {self._target.timeout:g} s of the first knock{self._reasons()}"

    def _name(self) -> str:
        return f"{name_of(self._target.host, self._hosts)} port {self._target.port}"

    def _reasons(self) -> str:
        reasons = dict.fromkeys(self._attempts.reasons.values())
        return f": {', '.join(reasons)}" if reasons else ""


def _rounds(delay: float | None) -> Iterator[tuple[float, float]]:
    """Yield, for each round, the seconds until the next one and the seconds between its knocks."""
    pauses = chain(_PAUSES_BETWEEN_ROUNDS, repeat(_PAUSES_BETWEEN_ROUNDS[-1]))
    growing = chain(_PAUSES_BETWEEN_KNOCKS, repeat(_PAUSES_BETWEEN_KNOCKS[-1]))
    yield from zip(pauses, repeat(delay) if delay is not None else growing, strict=False)
