"""What this process may do, and how it gives up the rest."""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

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


# linux/prctl.h
_SET_KEEPCAPS, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 8, 24, 38
_CAP_AMBIENT, _CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64


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
    libc = ctypes.CDLL(None, use_errno=True)
    needed = sum(1 << bit for bit in _NEEDED.values())
    try:
        _drop_bounds(libc, needed)
        _prctl(libc, _SET_KEEPCAPS, 1)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        _set(libc, needed)
        for bit in _NEEDED.values():
            _prctl(libc, _CAP_AMBIENT, _CAP_AMBIENT_RAISE, bit)
        _prctl(libc, _SET_NO_NEW_PRIVS, 1)
    except OSError as exc:
        raise DaemonError(f"becoming the user {user.pw_name}: {(exc.strerror or str(exc)).lower()}") from exc


def _drop_bounds(libc: ctypes.CDLL, needed: int) -> None:
    """Let no program that is started from now on have more, setuid or not."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for bit in range(min(last + 1, _MOST_CAPABILITIES)):
        if not needed >> bit & 1:
            _prctl(libc, _CAPBSET_DROP, bit)


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    if libc.prctl(option, *(ctypes.c_ulong(each) for each in padded)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _set(libc: ctypes.CDLL, wanted: int) -> None:
    """Have just these capabilities; see capset(2): effective, permitted, inheritable, 32 of them at a time."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
