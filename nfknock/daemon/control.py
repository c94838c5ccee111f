"""How a daemon is found: one a network namespace, by a file and a socket named after that namespace.

The socket hands out the daemon's counters as one line of JSON to whoever connects, and takes no orders: what is open
is in the kernel, and who may change that may change it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from nfknock import files
from nfknock.errors import DaemonError

_ANSWER_TIMEOUT = 1.0
_LONGEST_ANSWER = 65_536


def runtime_directory() -> Path:
    """Where the files are: $NFKNOCK_RUNTIME_DIR, else /run/nfknock."""
    return Path(os.environ.get("NFKNOCK_RUNTIME_DIR") or "/run/nfknock")


def runtime_path(name: str) -> Path:
    """Return where a file of this network namespace is."""
    namespace = Path("/proc/self/ns/net").stat().st_ino
    return runtime_directory() / f"{name.partition('.')[0]}-{namespace}.{name.partition('.')[2]}"


def _path(suffix: str) -> Path:
    return runtime_path(f"daemon.{suffix}")


@contextlib.contextmanager
def sole_daemon() -> Iterator[None]:
    """Be the one daemon of this network namespace. Raises DaemonError if there is another."""
    path = _path("lock")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = os.fdopen(files.open_shared(path), "r+")
    except OSError as exc:
        raise DaemonError(
            f"creating {path}: {(exc.strerror or str(exc)).lower()}; run this as root, or set NFKNOCK_RUNTIME_DIR"
        ) from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DaemonError(f"a daemon runs here already: process {file.read().strip()}; stop it first") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_removed() -> bool:
    """Whether `nfknock remove` took the firewall out, so that it must not be put back."""
    return _path("removed").exists()


def note_removed(*, removed: bool) -> None:
    """Let a running daemon know whether the firewall is out because somebody wished so. Raises DaemonError."""
    path = _path("removed")
    try:
        if not removed:
            path.unlink(missing_ok=True)
        elif path.parent.exists():  # without it no daemon has ever run here
            _touch(path)
    except OSError as exc:
        raise DaemonError(f"telling the daemon by {path}: {(exc.strerror or str(exc)).lower()}") from exc


def closed_at() -> float:
    """When holes were last shut by hand, in epoch seconds; 0 if never."""
    try:
        return _path("closed").stat().st_mtime
    except OSError:
        return 0.0


def note_closed() -> None:
    """Let a running daemon know that holes are shut by hand, so that it does not put them back."""
    path = _path("closed")
    if path.parent.exists():
        with contextlib.suppress(OSError):
            _touch(path)


def _touch(path: Path) -> None:
    descriptor = files.open_shared(path)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def answering(describe: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Answer those who ask for the daemon's counters, while the block runs."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(json.dumps(describe()).encode() + b"\n")
            await writer.drain()
        writer.close()

    path = _path("sock")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with short(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    server = await asyncio.start_unix_server(answer, sock=listener)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """Name a socket by its directory's descriptor: an address has room for 107 bytes, a path may be longer."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def ask_daemon() -> dict[str, Any] | None:
    """Return the running daemon's counters, None if there is no daemon here. Raises DaemonError if it is silent."""
    path = _path("sock")
    try:
        with socket.socket(socket.AF_UNIX) as connection, short(path) as address:
            connection.settimeout(_ANSWER_TIMEOUT)
            connection.connect(address)
            with connection.makefile("rb") as stream:
                return _read(stream.readline(_LONGEST_ANSWER))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError) as exc:
        raise DaemonError(f"asking the daemon at {path}: {exc}") from exc


def _read(answer: bytes) -> dict[str, Any]:
    """Read what a daemon said. Raises ValueError; it may be another program that has the socket."""
    try:
        said = json.loads(answer)
    except RecursionError:
        said = None
    if not isinstance(said, dict):
        raise ValueError("that is no answer of a daemon's")  # noqa: TRY004  (it came from outside)
    return said


def reload_daemon() -> None:
    """Have a running daemon read its configuration anew, if there is one and it may be told."""
    with contextlib.suppress(OSError):
        if process := find_daemon():
            os.kill(process, signal.SIGHUP)


def find_daemon() -> int | None:
    """Return the process id of the daemon of this network namespace, None if there is none. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ValueError), _path("lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            process = int(file.read())
            # The file belongs to the daemon's user, and must not choose for root whom a signal is sent to.
            if process in _holders(os.fstat(file.fileno()).st_ino):
                return process
    return None


def _holders(inode: int) -> list[int]:
    """Return the processes that the kernel knows to have locked a file of that number."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(row[4]) for row in rows if "->" not in row and row[5].endswith(f":{inode}")]
