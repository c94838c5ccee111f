"""The process that takes strangers' packets apart: `main` is its whole life. The daemon asks, and it answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from nfknock.apart import confinement, records
from nfknock.apart.copies import Copies, Taken

# As `ps` and `top` show it.
_NAME = "nfknock-reader"


def main(channel_number: int, source_number: int) -> None:
    """Answer by the one descriptor what comes by the other, until nobody asks any more."""
    channel = socket.socket(fileno=channel_number)
    try:
        source = socket.socket(fileno=source_number)
        _prepare()
        confinement.confine()
        channel.send(records.pack(Taken([], 0, 0), 0))  # ready
        _serve(channel, Copies(source))
    except OSError as exc:
        _tell(channel, records.pack_error(exc.errno or 1))
    except Exception as exc:  # noqa: BLE001  (whatever it is, it may have a packet's content in it)
        _tell(channel, records.pack_last_words(_place(exc)))


def _prepare() -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:  # noqa: PTH123  (pathlib is large)
        file.write(_NAME)
    # What is meant for the daemon may be sent to all. It ends, and then this does.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The log is the daemon's: whoever takes this process over is not to write there.
    os.dup2(1, 2)


def _serve(channel: socket.socket, copies: Copies) -> None:
    while request := channel.recv(records.REQUEST.size):
        most, copies.next_number = records.REQUEST.unpack(request)
        try:
            answer = records.pack(copies.take(most), copies.next_number)
        except OSError as exc:
            answer = records.pack_error(exc.errno or 1)
        channel.send(answer)


def _tell(channel: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody asks any more
        channel.send(answer)


def _place(exc: BaseException) -> str:
    """Say what happened and where, and nothing of what it happened to."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119
    return f"{type(exc).__name__}{where}"
