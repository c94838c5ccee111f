"""One process that takes packets apart, as the daemon sees it: how it is started, asked and ended.

It is another program, not a copy of the daemon: nothing of the daemon's memory is in it, no sequence above all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from nfknock.apart import records
from nfknock.host import capabilities

# What it runs, alone with the standard library. Where the package is goes last, so that nothing beside it is taken for
# a part of that.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from nfknock.apart.child import main; main(*map(int, sys.argv[2:]))"
)
_PACKAGES = str(Path(__file__).resolve().parents[2])
# Many short waits: when both were stopped for a minute, one of them is over at once and the others are not.
_WAIT, _WAITS = 1.0, 10


class LostChildError(Exception):
    """It ended, hangs, or could not be started; what it had in hand is lost. Says how, as what follows "it"."""


class Child:
    """One that runs. To be started by the main thread: it ends with the thread that started it."""

    def __init__(self, source: int) -> None:
        """Start it on the descriptor of a socket and wait until it has given up its rights.

        Raises LostChildError, and NonsenseError as `ask` does.
        """
        self._buffer = memoryview(bytearray(records.LONGEST_ANSWER + 1))
        try:
            self._channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as exc:
            raise LostChildError(f"could not be started: {_reason(exc)}") from exc
        self._channel.settimeout(_WAIT)
        try:
            with its_end, capabilities.kept_from_programs():
                self._process = _start(its_end.fileno(), source)
        except OSError as exc:
            self._channel.close()
            raise LostChildError(f"could not be started: {_reason(exc)}") from exc
        try:
            self._receive()
        except OSError as exc:
            self.end()
            raise LostChildError(f"could not give up its rights: {_reason(exc)}") from exc
        except BaseException:
            self.end()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is hung up when it has ended."""
        return self._channel.fileno()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, most: int, next_number: int) -> records.Answer:
        """Return what it takes, about so many packets at once; `next_number` is what the next one has.

        Raises LostChildError; NonsenseError, for what nobody may believe; OSError, where the source fails it.
        """
        try:
            self._channel.send(records.REQUEST.pack(most, next_number))
        except OSError:
            raise LostChildError(self._how_it_ended()) from None
        return self._receive()

    def end(self) -> None:
        """End it, and wait until it is gone and its socket with it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> records.Answer:
        for _ in range(_WAITS):
            try:
                size = self._channel.recv_into(self._buffer)
            except TimeoutError:
                continue
            except OSError:
                break
            if not size:
                break
            if size > records.LONGEST_ANSWER:
                raise records.NonsenseError
            try:
                return records.unpack(self._buffer[:size])
            except records.LastWordsError as exc:
                raise LostChildError(f"ended: {exc}") from exc
        else:
            raise LostChildError(f"did not answer for {_WAIT * _WAITS:g} s")
        raise LostChildError(self._how_it_ended())

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            return "hung up"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with exit code {status}"


def _start(its_end: int, source: int) -> subprocess.Popen[bytes]:
    descriptors = (its_end, source)
    return subprocess.Popen(  # noqa: S603  (ourselves)
        [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, _PACKAGES, *map(str, descriptors)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        cwd="/",
        env={},
    )


def _reason(exc: OSError) -> str:
    return os.strerror(exc.errno or 0).lower()
