"""The process that takes an unconfirmed `apply` back, whatever becomes of whoever called it.

It is on its own before anything is changed: a session of its own, no terminal, no open file of the caller's. It
remembers the firewall as it was, and listens on a socket in the runtime directory for one of two words.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from nfknock import files
from nfknock.backends import Backend
from nfknock.daemon import control
from nfknock.errors import NfknockError

_KEEP, _TAKE_BACK, _WATCH = b"keep\n", b"take back\n", b"watch\n"
KEPT, TAKEN_BACK = "kept", "taken back"
_RETRY_AFTER = 1.0
_ANSWER_TIMEOUT = 5.0
_READY_TIMEOUT = 30.0
_LOOK_EVERY = 0.05


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    """Change the firewall while no `apply` waits for its confirmation. Raises NfknockError if one does."""
    with contextlib.ExitStack() as stack:
        # Where there is no place for the lock, no guard can be.
        with contextlib.suppress(_NoPlaceError):
            stack.enter_context(_locked())
        yield


def is_waiting() -> bool:
    """Whether an `apply` waits for its confirmation."""
    # By its lock: the socket is root's, and the daemon may be another user.
    try:
        with nobody_waits():
            return False
    except NfknockError:
        return True


class _NoPlaceError(NfknockError):
    """There is no directory for the lock, and none can be made."""


class Trial(Protocol):
    """What else there is to be done when a trial ends. Called in the guard."""

    def rejected(self) -> None:
        """Nobody confirmed; the firewall is about to be taken back."""

    def ended(self, *, is_kept: bool) -> None:
        """The firewall is what it will be."""


def start(make_backend: Callable[[], Backend], timeout: float, trial: Trial) -> None:
    """Start a guard that remembers the firewall as it is and takes it back after `timeout` seconds.

    Returns when the guard is ready. Raises NfknockError, and then there is none.
    """
    reading, writing = os.pipe()
    with _locked() as lock:
        child = os.fork()
        if child == 0:
            _detach(lambda: _guard(make_backend, timeout, trial, writing), keep=(writing, lock))
        os.close(writing)
        os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as ready:
        answer = _read_within(ready.fileno(), _READY_TIMEOUT)
    if answer != b"ready":
        raise NfknockError(f"starting the guard: {answer.decode(errors='replace') or 'it ended'}; nothing was changed")


def tell(word: str) -> str:
    """Tell the guard `keep` or `take back`; return how the trial ended. Raises NfknockError if none waits."""
    with _connected() as connection:
        connection.sendall(_KEEP if word == "keep" else _TAKE_BACK)
        return _result(connection)


def take_back() -> None:
    """Have an `apply` that waits for its confirmation taken back, and its guard end. Raises NfknockError."""
    outcome = tell("take back")
    give_up_at = time.monotonic() + _READY_TIMEOUT
    while is_waiting():
        if time.monotonic() > give_up_at:
            raise NfknockError(f"the guard of `nfknock apply --confirm` says {outcome!r} and does not end")
        time.sleep(_LOOK_EVERY)


@contextlib.contextmanager
def watching() -> Iterator[socket.socket]:
    """Give a socket that becomes readable when the trial has ended; `result` reads how. Raises NfknockError."""
    with _connected() as connection:
        connection.sendall(_WATCH)
        yield connection


def result(connection: socket.socket) -> str:
    """Return how the trial ended: KEPT, TAKEN_BACK, or what went wrong."""
    return _result(connection)


def _result(connection: socket.socket) -> str:
    connection.settimeout(None)
    return connection.makefile("rb").readline().decode().strip() or "the guard ended without a word"


@contextlib.contextmanager
def _connected() -> Iterator[socket.socket]:
    path = control.runtime_path("confirm.sock")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with control.short(path) as address:
                connection.connect(address)
        except OSError:
            raise NfknockError("no `nfknock apply --confirm` waits for a confirmation here") from None
        yield connection


@contextlib.contextmanager
def _locked() -> Iterator[int]:
    path = control.runtime_path("confirm.lock")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = files.open_shared(path)
    except OSError as exc:
        raise _NoPlaceError(f"creating {path}: {(exc.strerror or str(exc)).lower()}; run this as root") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise NfknockError(
            "an `nfknock apply --confirm` waits for its confirmation; run `nfknock confirm`, or wait for its end"
        ) from None
    finally:
        os.close(descriptor)


def _read_within(descriptor: int, timeout: float) -> bytes:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return os.read(descriptor, 4096) if selector.select(timeout) else b"it does not answer"


def _detach(work: Callable[[], None], *, keep: tuple[int, ...]) -> NoReturn:
    """Go on in a process that belongs to nobody. Never returns."""
    try:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            # Whoever waits for our caller's files to be closed is not to wait for us.
            for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (numbers, not paths)
                if int(name) > 2 and int(name) not in keep:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            work()
    finally:
        os._exit(0)


def _guard(make_backend: Callable[[], Backend], timeout: float, trial: Trial, ready: int) -> None:
    try:
        backend = make_backend()
        take_back = backend.remember()
        listener = _listen()
        # From "ready" on the caller changes things, and to be told to end means to take them back.
        told_to_end = _hear_sigterm()
    except BaseException as exc:  # noqa: BLE001  (whatever it is, the caller has to know, and nothing is changed)
        os.write(ready, str(exc).encode() or b"it failed")
        return
    watchers: list[socket.socket] = []
    keep = False
    # Whatever goes wrong in here, an error of ours too: nobody confirmed, and nobody else takes it back.
    with contextlib.suppress(Exception):
        os.write(ready, b"ready")
        os.close(ready)
        keep = _wait(listener, time.monotonic() + timeout, watchers, told_to_end)
    if not keep:
        with contextlib.suppress(Exception):
            trial.rejected()
        _insist(take_back)
    with contextlib.suppress(Exception):
        trial.ended(is_kept=keep)
    with contextlib.suppress(OSError):
        control.runtime_path("confirm.sock").unlink(missing_ok=True)
    for watcher in watchers:
        with contextlib.suppress(OSError):
            watcher.sendall(f"{KEPT if keep else TAKEN_BACK}\n".encode())


def _hear_sigterm() -> Callable[[], bool]:
    """Return what says whether SIGTERM came since."""
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    return lambda: bool(came)


def _listen() -> socket.socket:
    path = control.runtime_path("confirm.sock")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # Not by chmod: the directory may be another user's, who could put a link in the socket's place.
    before = os.umask(0o177)
    with control.short(path) as address:
        listener.bind(address)
    os.umask(before)
    listener.listen()
    return listener


def _wait(
    listener: socket.socket, until: float, watchers: list[socket.socket], told_to_end: Callable[[], bool]
) -> bool:
    """Return whether somebody said in time that it is to be kept. Whoever is told to end knows that nobody will."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while not told_to_end() and (left := until - time.monotonic()) > 0:
            for key, _events in selector.select(min(left, 0.2)):
                if key.fileobj is listener:
                    connection, _address = listener.accept()
                    connection.settimeout(_ANSWER_TIMEOUT)
                    watchers.append(connection)
                    selector.register(connection, selectors.EVENT_READ, connection)
                    continue
                selector.unregister(key.fileobj)
                with contextlib.suppress(OSError):
                    word = key.data.recv(64)
                    if word in (_KEEP, _TAKE_BACK):
                        return bool(word == _KEEP)
    return False


def _insist(take_back: Callable[[], None]) -> None:
    """Take it back, however long somebody holds the lock, and whatever else is in the way."""
    while True:
        try:
            take_back()
        except Exception:  # noqa: BLE001  (to give up is to leave what nobody confirmed)
            time.sleep(_RETRY_AFTER)
        else:
            return
