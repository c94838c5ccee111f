"""What this process may do, and how it gives up the rest."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from nfknock import rights
from nfknock.errors import ConfigError, DaemonError

# linux/capability.h
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def missing(status: Path = Path("/proc/self/status")) -> list[str]:
    """Return which of the capabilities that nfknock needs this process has not got. Raises OSError."""
    for line in status.read_text().splitlines():
        name, _, text = line.partition(":")
        if name == "CapEff":
            effective = int(text, 16)
            return [capability for capability, bit in _NEEDED.items() if not effective >> bit & 1]
    return list(_NEEDED)


def find_user(name: str) -> pwd.struct_passwd:
    """Return what the host knows of a user. Raises ConfigError."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        mend = f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigError(f"daemon.user: there is no user {name!r} on this host; run: {mend}") from None


def become(user: pwd.struct_passwd) -> None:
    """Go on as another user with what nfknock needs, and with nothing else, for good. Raises DaemonError.

    Only for a process of one thread: the kernel counts capabilities by thread. What it starts has the same.
    """
    needed = sum(1 << bit for bit in _NEEDED.values())
    try:
        rights.drop_bounds(but=needed)
        rights.prctl(rights.SET_KEEPCAPS, 1)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        rights.set_capabilities(needed)
        rights.set_ambient(needed)
        rights.prctl(rights.SET_NO_NEW_PRIVS, 1)
    except OSError as exc:
        raise DaemonError(f"becoming the user {user.pw_name}: {(exc.strerror or str(exc)).lower()}") from exc


@contextlib.contextmanager
def kept_from_programs() -> Iterator[None]:
    """Let no program that this thread starts meanwhile have a capability, unless it is root's. Raises OSError."""
    held = rights.ambient()
    rights.set_ambient(0)
    try:
        yield
    finally:
        rights.set_ambient(held)
