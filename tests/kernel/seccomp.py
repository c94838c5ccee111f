"""Runs a program on a kernel that lacks something: system calls that would show it fail as they do there.

    python -m tests.kernel.seccomp ipv6|legacy|memory6|match|tables|nfqueue|nflog PROGRAM …

The real kernel here has everything, and cannot be rebuilt for a test. What a program sees of a missing feature is an
error from a system call, and that can be had with a seccomp filter (x86-64 and arm64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_LD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBERS = {
    "x86_64": {"socket": 41, "setsockopt": 54, "getsockopt": 55, "recvfrom": 45},
    "aarch64": {"socket": 198, "setsockopt": 208, "getsockopt": 209, "recvfrom": 207},
}
_AF_INET6 = 10
_IPPROTO_IPV6 = 41
# linux/netfilter_ipv4/ip_tables.h: IPT_SO_GET_INFO; the IPv6 one has the same number.
_REPLACE = _GET_INFO = 64
_GET_REVISION_MATCH = 66
# With which flags each reader, and nobody else, asks its socket.
_MSG_DONTWAIT, _MSG_TRUNC = 0x40, 0x20

MISSING = {
    # What fails, which argument tells (by its place), the value, and how it fails.
    "ipv6": ("socket", 0, _AF_INET6, errno.EAFNOSUPPORT),
    "legacy": ("getsockopt", 2, _GET_INFO, errno.ENOPROTOOPT),
    # Tables are written with setsockopt; for IPv6 at this level.
    "memory6": ("setsockopt", 1, _IPPROTO_IPV6, errno.ENOMEM),
    # A match is asked for by its name when a rule is built; the kernel may know it no longer when the rule is written.
    "match": ("getsockopt", 2, _GET_REVISION_MATCH, errno.EPROTONOSUPPORT),
    "tables": ("setsockopt", 2, _REPLACE, errno.ENOENT),
    "nfqueue": ("recvfrom", 3, _MSG_DONTWAIT, errno.EIO),
    "nflog": ("recvfrom", 3, _MSG_TRUNC, errno.EIO),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def lack(what: str) -> None:
    """Make this process, and all that it becomes, live without something."""
    call, place, value, error = MISSING[what]
    number = _NUMBERS[platform.machine()][call]
    instructions = [
        (_LD_WORD, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 3, number),
        (_LD_WORD, 0, 0, 16 + 8 * place),
        (_JUMP_IF_EQUAL, 0, 1, value),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(_Program(len(instructions), code)), 0, 0):
        raise OSError(ctypes.get_errno(), "setting a seccomp filter")


if __name__ == "__main__":
    lack(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
