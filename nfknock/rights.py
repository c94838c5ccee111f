"""What a process may do, in the kernel's words: prctl(2), capget(2), capset(2). Everything raises OSError.

The kernel counts capabilities by thread. Each set of them is a number, with a bit for every capability.
"""

from __future__ import annotations

import ctypes
import errno
import os

# linux/prctl.h
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_KEEPCAPS, SET_NO_NEW_PRIVS = 1, 4, 8, 38
_BOUNDS_DROP, _AMBIENT = 24, 47
_AMBIENT_IS_SET, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 1, 2, 4
# linux/capability.h
_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int) -> int:
    """Ask the kernel to do this to the process, or to tell it."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    result = int(_libc.prctl(option, *(ctypes.c_ulong(each) for each in padded)))
    if result < 0:
        raise _error()
    return result


def drop_bounds(*, but: int = 0) -> None:
    """Let no program that is started from now on have more than these, setuid or not."""
    for bit in range(_MOST_CAPABILITIES):
        if not but >> bit & 1 and not _is_known(_BOUNDS_DROP, bit):
            return


def ambient() -> int:
    """Return what programs that are started get, whoever they belong to."""
    raised = 0
    for bit in range(_MOST_CAPABILITIES):
        try:
            raised |= prctl(_AMBIENT, _AMBIENT_IS_SET, bit) << bit
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            break  # this kernel has no more
    return raised


def set_ambient(wanted: int) -> None:
    """Let programs that are started have these, which this thread must have as permitted and inheritable."""
    prctl(_AMBIENT, _AMBIENT_CLEAR_ALL)
    for bit in range(_MOST_CAPABILITIES):
        if wanted >> bit & 1:
            prctl(_AMBIENT, _AMBIENT_RAISE, bit)


def capabilities() -> int:
    """Return what this thread may use, or take into use."""
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capget(header, sets) != 0:
        raise _error()
    effective, permitted, _, effective_high, permitted_high, _ = sets
    return effective | permitted | (effective_high | permitted_high) << 32


def set_capabilities(wanted: int) -> None:
    """Have just these as effective, permitted and inheritable ones."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    if _libc.capset(header, (ctypes.c_uint32 * 6)(low, low, low, high, high, high)) != 0:
        raise _error()


def _is_known(option: int, bit: int) -> bool:
    try:
        prctl(option, bit)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return False
    return True


def _error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
