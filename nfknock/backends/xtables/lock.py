"""The xtables lock: what keeps `iptables-legacy` and nfknock from undoing each other's changes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfknock.errors import BackendError, LockHeldError

LOCK_TIMEOUT = 5.0
_PAUSE = 0.005


def lock_path() -> Path:
    """Where this host's lock is: the same file as iptables takes (iptables 1.8, xtables_lock)."""
    return Path(os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock")


@contextmanager
def xtables_lock(timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock. Raises LockHeldError when another program keeps it for `timeout` seconds.

    Hold it for milliseconds: `iptables-legacy` without `-w` waits for it, even to list.
    """
    path = lock_path()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK, 0o600)
    except OSError as exc:
        raise BackendError(f"opening the xtables lock {path}: {(exc.strerror or str(exc)).lower()}") from exc
    try:
        _wait(descriptor, path, timeout)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, timeout: float) -> None:
    give_up_at = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise LockHeldError(
                    f"the xtables lock {path} is held by {_holder(descriptor)} for more than {timeout:g} s; "
                    "nothing was changed"
                ) from None
            time.sleep(_PAUSE)
        else:
            return


def _holder(descriptor: int) -> str:
    """Who has the lock, out of /proc/locks, for the error message."""
    inode = f":{os.fstat(descriptor).st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and len(fields) > 5 and fields[5].endswith(inode):
                return f"process {fields[4]} ({Path('/proc', fields[4], 'comm').read_text().strip()})"
    except OSError:
        pass
    return "another program"
