"""Joins a connection to standard input and output, as ssh's ProxyCommand wants it.

Two directions, each with its own end. Input that ends is passed on as the end of what we send, and we go on receiving;
a connection that ends closes the output, and we go on sending. Bytes go by descriptor, past Python's streams: those
would buffer them, and on Windows change them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading

from nfknock.client.hosts import reason_of
from nfknock.errors import ClientError

_BYTES_AT_ONCE = 256 << 10
_LOOK_EVERY = 0.5


def pipe(connection: socket.socket, *, stdin: int = 0, stdout: int = 1) -> None:
    """Pass bytes both ways until both directions have ended, or nobody reads the output any more.

    Raises ClientError when the connection breaks, OSError when the output cannot be written for want of room.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for descriptor in (stdin, stdout):
        _take_bytes_as_they_are(descriptor)
    resets: list[OSError] = []
    # A daemon thread: one that waits for input does not keep the program from ending.
    sending = threading.Thread(target=_send, args=(stdin, connection, resets), name="send", daemon=True)
    sending.start()
    try:
        _receive(connection, stdout)
    except BrokenPipeError:
        return
    if resets:  # the system tells of it once, to whoever comes first
        raise _broken(resets[0])
    _close_output(stdout)
    while sending.is_alive():
        sending.join(_LOOK_EVERY)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return  # the other end is gone for good, and nobody would take what is still to come


def _send(stdin: int, connection: socket.socket, resets: list[OSError]) -> None:
    # Whatever ends this, a hang-up of the terminal or of the other end, there is no more to send.
    try:
        while data := _read(stdin):
            connection.sendall(data)
    except ConnectionResetError as exc:
        resets.append(exc)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, stdout: int) -> None:
    while data := _take(connection):
        _write(stdout, data)


def _take(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_BYTES_AT_ONCE)
    except OSError as exc:
        raise _broken(exc) from exc


def _broken(exc: OSError) -> ClientError:
    return ClientError(f"the connection broke: {reason_of(exc)}")


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _BYTES_AT_ONCE)
        except BlockingIOError:  # somebody who has it too made it so
            select.select([descriptor], [], [])


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises BrokenPipeError when nobody reads it, which Windows calls an invalid argument."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ECONNRESET):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from exc
            raise


def _close_output(descriptor: int) -> None:
    """Let whoever reads our output see its end."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            # Our input may be the same socket, and keeps it open.
            with socket.socket(fileno=os.dup(descriptor)) as output:
                output.shutdown(socket.SHUT_WR)
    # Not closed, but exchanged: the next thing that is opened must not become the standard output.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _take_bytes_as_they_are(descriptor: int) -> None:
    """Keep Windows from changing line ends and from taking Ctrl-Z for the end."""
    with contextlib.suppress(ImportError, OSError):
        import msvcrt

        msvcrt.setmode(descriptor, os.O_BINARY)  # type: ignore[attr-defined,unused-ignore]
