"""One command of a door, from its start to its end: what it says, how it ends, and what becomes of one that hangs.

Everything here blocks and runs in a thread of its own. There is no shell: a command is a list of arguments.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from nfknock.config.durations import format_duration
from nfknock.core.model import IPAddress, family_of
from nfknock.daemon import logs
from nfknock.daemon.threads import NoRoomError

# What somebody needs to find out what went wrong; the rest is counted.
_MOST_OUTPUT = 4_096
_MOST_LINES = 20
_CHUNK = 65_536
# A command that prints without end is read slowly: it must not take time from packets.
_PAUSE = 0.01
_TERM_TIMEOUT = 5.0
_LAST_TERM_TIMEOUT = 1.0

# Not enough of something just now; anything else will not get better by waiting.
_TRANSIENT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

# What is between our supervisor and us.
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "JOURNAL_STREAM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A command to be run. The timeout is in seconds."""

    door: str
    source: IPAddress
    arguments: tuple[str, ...]
    run_timeout: float

    def environment(self) -> dict[str, str]:
        """Return what the command finds in its environment."""
        inherited = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
        family = family_of(self.source)
        return {**inherited, "NFKNOCK_DOOR": self.door, "NFKNOCK_SOURCE": str(self.source), "NFKNOCK_FAMILY": family}


class Process:
    """A command that runs."""

    def __init__(self, call: Call, *, outlives_us: bool = False) -> None:
        """Start it. Raises NoRoomError, or OSError when it can never be started.

        One that outlives us is not ended by SIGPIPE when nobody reads any more what it says.
        """
        logs.log.info(logs.running(call.door, call.arguments))
        self._call = call
        self._kill_at = time.monotonic() + call.run_timeout
        self._term_timeout = _TERM_TIMEOUT
        self._signal = signal.SIGTERM
        self._output = _Output(lambda line: logs.log.info("%s: command says: %s", call.door, line))
        try:
            self._process = subprocess.Popen(  # noqa: S603  (the administrator's arguments, and an address)
                call.arguments,
                stdin=_nothing(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=call.environment(),
                cwd="/",
                start_new_session=True,
                # Python ignores SIGPIPE, and so does then what it starts.
                restore_signals=not outlives_us,
            )
        except OSError as exc:
            if exc.errno in _TRANSIENT:
                raise NoRoomError((exc.strerror or str(exc)).lower()) from exc
            raise
        self._pidfd = self._watched()

    def wait(self) -> None:
        """Follow it to its end and say how that was."""
        process = self._process
        assert process.stdout is not None
        with process.stdout, selectors.PollSelector() as selector, os.fdopen(self._pidfd, "rb") as ended:
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(ended, selectors.EVENT_READ)
            selector.register(process.stdout, selectors.EVENT_READ, self._output)
            while not self._has_ended(selector):
                if time.monotonic() >= self._kill_at:
                    self._kill()
            # What it said last. Children that it left behind may hold the pipe open; they are not waited for.
            self._output.take(process.stdout.fileno())
        if self._signal is not signal.SIGTERM:
            # It was told to end, and so are the children that it left. Until it is taken in, its number is its own.
            self._send(signal.SIGKILL)
        self._output.finish()
        self._report(process.wait())

    def end(self) -> None:
        """Tell it to end, from another thread: `wait` sees to the rest, soon."""
        self._term_timeout = _LAST_TERM_TIMEOUT
        self._kill_at = 0.0

    def _watched(self) -> int:
        try:
            return os.pidfd_open(self._process.pid)
        except OSError as exc:
            self._send(signal.SIGKILL)
            self._process.communicate()
            raise NoRoomError((exc.strerror or str(exc)).lower()) from exc

    def _has_ended(self, selector: selectors.BaseSelector) -> bool:
        left = max(0.0, self._kill_at - time.monotonic())
        has_ended = False
        for key, _events in selector.select(min(left, 0.5)):
            if key.data is None:
                has_ended = True
            elif not self._output.take(key.fd):
                selector.unregister(key.fileobj)
        return has_ended

    def _kill(self) -> None:
        if self._signal is signal.SIGTERM and self._kill_at:
            seconds = format_duration(self._call.run_timeout)
            logs.log.error("%s: command did not end within %s and is ended", self._call.door, seconds)
        self._send(self._signal)
        self._signal = signal.SIGKILL
        self._kill_at = time.monotonic() + self._term_timeout

    def _send(self, number: signal.Signals) -> None:
        # The whole group: a shell's children as well. Until `wait` has taken it in, its number is nobody else's.
        with contextlib.suppress(OSError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, number)

    def _report(self, status: int) -> None:
        if status > 0:
            logs.log.warning("%s: command returned non-zero status code (%d)", self._call.door, status)
        elif status < 0:
            logs.log.warning("%s: command was ended by signal %d", self._call.door, -status)


class _Output:
    """The first lines of what a command says."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._kept = bytearray()
        self._length = 0

    def take(self, descriptor: int) -> bool:
        """Read what is there; False at its end."""
        if self._length > _MOST_OUTPUT:
            time.sleep(_PAUSE)
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._kept += chunk[: max(0, _MOST_OUTPUT - self._length)]
        self._length += len(chunk)
        return bool(chunk)

    def finish(self) -> None:
        lines = bytes(self._kept).decode(errors="replace").splitlines()
        for line in lines[:_MOST_LINES]:
            self._say(logs.visible(line))
        if len(lines) > _MOST_LINES or self._length > _MOST_OUTPUT:
            self._say(f"and more, {self._length} bytes in all")


@functools.cache
def _nothing() -> int:
    """Return a descriptor of /dev/null that stays: Popen would leave its own open where there is no room for a pipe."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
