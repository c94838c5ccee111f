"""Where log lines go: stderr (which under systemd is the journal), syslog, a file.

A thread of its own writes them: a log that nobody reads, or a disk that hangs, must not hold up the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

from nfknock.config import Log
from nfknock.errors import DaemonError

_LINES_WAITING = 4_096
_LAST_WORDS_TIMEOUT = 1.0
_SYSLOG = "/dev/log"

# What says so stands on stderr even where the log goes elsewhere: whoever started us waits for it there.
ON_STDERR = {"on_stderr": True}


class _Outlet(Protocol):
    def write(self, line: str, level: int) -> None:
        """Write one line. Raises OSError."""

    def close(self) -> None:
        """Let go of what is open."""


class _Stream:
    """A descriptor.

    Past Python's own stream: whoever hangs in that holds its lock, and Python would wait for the lock when it ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_journal = os.environ.get("JOURNAL_STREAM") == _identity(descriptor)

    def write(self, line: str, level: int) -> None:
        # The journal takes a level in front of a line, see sd-daemon(3).
        _write(self._descriptor, f"<{_severity(level)}>{line}\n" if self._is_journal else f"{line}\n")

    def close(self) -> None:
        """Keep it: it is not ours."""


class _File:
    """A file that is added to, in knockd's format: `[2026-11-21 17:04] LINE`."""

    def __init__(self, path: Path) -> None:
        # Who knocked is not everybody's to know; the group is for those who watch logs.
        # Without O_NONBLOCK a pipe that nobody reads would hold us up here.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        os.set_blocking(self._descriptor, True)

    def write(self, line: str, level: int) -> None:  # noqa: ARG002  (knockd's format has no level)
        _write(self._descriptor, f"[{time.strftime('%Y-%m-%d %H:%M')}] {line}\n")

    def close(self) -> None:
        os.close(self._descriptor)


class _Syslog:
    """The host's syslog, as the facility daemon."""

    def __init__(self, address: str) -> None:
        self._handler = _Handler(address, logging.handlers.SysLogHandler.LOG_DAEMON)
        self._handler.ident = f"nfknock[{os.getpid()}]: "

    def write(self, line: str, level: int) -> None:
        record = logging.makeLogRecord({"msg": line, "levelno": level, "levelname": logging.getLevelName(level)})
        self._handler.emit(record)

    def close(self) -> None:
        self._handler.close()


class _Handler(logging.handlers.SysLogHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  (the name that logging has)
        raise OSError("syslog does not answer")


class Outlets(logging.Handler):
    """Hands lines to the thread that writes them."""

    def __init__(self, stderr: TextIO, wanted: Log, *, syslog: str = _SYSLOG) -> None:
        """Open what is wanted. Raises DaemonError."""
        super().__init__()
        self._syslog = syslog
        self._stderr = _Stream(stderr.fileno())
        self._outlets = self._open(wanted)
        self._lines: queue.Queue[tuple[str, int, bool] | Log | None] = queue.Queue(_LINES_WAITING)
        # A daemon thread: one that hangs in a write does not keep the program from ending.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        is_for_stderr = record.levelno >= logging.ERROR or getattr(record, "on_stderr", False)
        # When it is full there is nowhere to say so, and nobody who would read it.
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((self.format(record), record.levelno, is_for_stderr))

    def reopen(self, wanted: Log) -> None:
        """Open everything anew: a file may have been moved away. What cannot be opened is said and left as it is."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(wanted)

    def finish(self) -> None:
        """Write what is waiting, unless the writer is stuck."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_LAST_WORDS_TIMEOUT)
            self._thread.join(_LAST_WORDS_TIMEOUT)

    def _open(self, wanted: Log) -> list[_Outlet]:
        outlets: list[_Outlet] = []
        try:
            if wanted.file:
                outlets.append(_File(wanted.file))
            if wanted.syslog:
                outlets.append(_Syslog(self._syslog))
        except OSError as exc:
            what = self._syslog if outlets or not wanted.file else wanted.file
            raise DaemonError(f"opening the log {what}: {(exc.strerror or str(exc)).lower()}") from exc
        return outlets

    def _write(self) -> None:
        while (entry := self._lines.get()) is not None:
            if isinstance(entry, Log):
                self._open_anew(entry)
            else:
                self._write_line(*entry)

    def _write_line(self, line: str, level: int, is_for_stderr: bool) -> None:  # noqa: FBT001
        is_written = False
        for outlet in self._outlets:
            with contextlib.suppress(OSError):
                outlet.write(line, level)
                is_written = True
        if is_for_stderr or not is_written:
            with contextlib.suppress(OSError):
                self._stderr.write(line, level)

    def _open_anew(self, wanted: Log) -> None:
        try:
            outlets = self._open(wanted)
        except DaemonError as exc:
            self._write_line(f"{exc}; the log goes on where it went", logging.ERROR, is_for_stderr=True)
            return
        for outlet in self._outlets:
            outlet.close()
        self._outlets = outlets


def _write(descriptor: int, text: str) -> None:
    rest = text.encode(errors="replace")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _identity(descriptor: int) -> str:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def _severity(level: int) -> int:
    """Return syslog's number for a level of logging."""
    return 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6 if level >= logging.INFO else 7


@contextlib.contextmanager
def written_aside(stderr: TextIO, wanted: Log) -> Iterator[Outlets]:
    """Let a thread of its own write log lines while the block runs. Raises DaemonError."""
    root = logging.getLogger()
    before = list(root.handlers)
    aside = Outlets(stderr, wanted)
    root.handlers[:] = [aside]
    try:
        yield aside
    finally:
        aside.finish()
        root.handlers[:] = before
