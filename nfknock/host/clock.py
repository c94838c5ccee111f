"""Whether the clock is kept right: the kernel closes holes by date."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

# sys/timex.h: struct timex on 64-bit systems has `modes` at 0 and `status` behind four longs; it is 208 bytes.
_SIZE = 208
_STATUS_AT = 40
_UNSYNCHRONISED = 0x40
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")


def is_synchronised() -> bool | None:
    """Whether somebody keeps the clock right, None if the kernel does not say."""
    if _TIMESYNCD.exists():
        return True
    status = _status()
    return None if status is None else not status & _UNSYNCHRONISED


def _status() -> int | None:
    if struct.calcsize("l") != 8:
        return None
    # With no modes set the call only reads.
    state = ctypes.create_string_buffer(_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.adjtimex(state) < 0:
            return None
    except AttributeError:
        return None
    return int(struct.unpack_from("=i", state, _STATUS_AT)[0])
