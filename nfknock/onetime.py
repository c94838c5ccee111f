"""The file of one-time sequences on disk: read by both ends of a knock, and marked so that nothing counts twice.

The file is the record. A sequence is spent when the marked file has replaced the old one and is on the disk; whoever
asks for it afterwards, another process or the same one after a crash, finds that it is used.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nfknock.core import onetime
from nfknock.core.model import Sequence
from nfknock.core.onetime import Line
from nfknock.errors import OneTimeError, UsedUpError
from nfknock.files import read_regular, replace

_LOCK_TIMEOUT = 5.0
_LOCK_PAUSE = 0.01


def read(path: Path, *, closing: Sequence = ()) -> list[Line]:
    """Return what a file still has. Raises OneTimeError, also when it has nothing any more."""
    with _explained(path, "reading"):
        lines = onetime.unused(read_regular(path), closing=closing)
    if not lines:
        raise UsedUpError(_used_up(path))
    return lines


def spend(
    path: Path, sequence: Sequence | None = None, *, look_ahead: int = 0, closing: Sequence = ()
) -> tuple[Sequence, list[Line]]:
    """Mark a sequence as used, with those before it, and return it and what is left.

    None takes the next one. `look_ahead` is how many may be stepped over. When this returns it is on the disk. Raises
    OneTimeError, and then nothing was marked: there is no such unused sequence, or the file cannot be written.
    """
    with _explained(path, "marking a used sequence in"):
        # The file may be a link; what is replaced is the file.
        real = path.resolve(strict=True)
        with _locked(real.with_name(f".{real.name}.lock")):
            raw = read_regular(real)
            lines = onetime.unused(raw, closing=closing)
            within = lines[: look_ahead + 1]
            found = next((i for i, line in enumerate(within) if sequence in (None, line.sequence)), None)
            if not lines:
                raise UsedUpError(_used_up(path))
            if found is None:
                raise OneTimeError(f"{path} has no such unused sequence; it was used already, or it is too far ahead")
            replace(real, onetime.mark(raw, [line.number for line in lines[: found + 1]]))
            return lines[found].sequence, lines[found + 1 :]


def _used_up(path: Path) -> str:
    return f"{path} has no unused sequence any more; `nfknock sequences` makes new ones, for both ends"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only one who marks. The file itself cannot be the lock: it is replaced. Nobody else can open this one."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        give_up_at = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except BlockingIOError as exc:
        raise OneTimeError(f"{what} {path}: another program is marking in it") from exc
    except (OSError, RuntimeError) as exc:  # a loop of links is a RuntimeError
        raise OneTimeError(f"{what} {path}: {(getattr(exc, 'strerror', None) or str(exc)).lower()}") from exc
