"""Small files that an administrator owns: read without being held up, replaced durably or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

LARGEST = 1 << 20


def read_regular(path: Path) -> bytes:
    """Read a file of at most 1 MiB. Raises OSError; a pipe or a device would hold up a daemon that reads anew."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return file.read(LARGEST)


def open_shared(path: Path) -> int:
    """Open a file for reading and writing that the daemon and root both use, made if need be. Raises OSError.

    The daemon may be another user, whose directory it is: what root makes there belongs to that user, and no link is
    followed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        give_away(descriptor, path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def give_away(descriptor: int, directory: Path) -> None:
    """Let a file belong to whom its directory belongs to, if it was root who made it. Raises OSError."""
    if sys.platform != "win32" and os.geteuid() == 0:
        wanted, has = directory.stat(), os.fstat(descriptor)
        # A root in a sandbox may not even say that it is to stay as it is.
        if (wanted.st_uid, wanted.st_gid) != (has.st_uid, has.st_gid):
            os.fchown(descriptor, wanted.st_uid, wanted.st_gid)


def is_for_group(directory: Path) -> bool:
    """Whether root says, by the setgid bit, that what is in a directory is for its group to read. Raises OSError."""
    status = directory.stat()
    return status.st_uid == 0 and bool(status.st_mode & stat.S_ISGID)


def exposed(path: Path) -> int:
    """Return the permissions that others have on a secret, as bits of its mode. Raises OSError."""
    status = path.stat()
    others = stat.S_IMODE(status.st_mode) & 0o077
    if is_for_group(path.parent) and status.st_gid == path.parent.stat().st_gid:
        others &= ~stat.S_IRGRP
    return others


def replace(path: Path, content: bytes, *, is_shared: bool = False) -> None:
    """Put another content in a file's place, durably, or leave it as it is. Raises OSError.

    Owner, mode and extended attributes stay; a file that was not there is its owner's alone, and one that `is_shared`
    its directory's owner's.
    """
    # Always one name, so that crashes leave no crowd of files behind.
    made = path.with_name(f".{path.name}.new")
    made.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(made, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                _copy_owner(path, descriptor)
            elif is_shared:
                give_away(descriptor, path.parent)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        made.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink()
        raise
    sync_directory(path.parent)


def _copy_owner(path: Path, descriptor: int) -> None:
    if sys.platform == "win32":
        return
    status, own = path.stat(), os.fstat(descriptor)
    if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    if sys.platform == "linux":
        # Access lists and security labels; a file system that has none is none the worse.
        for attribute in _attributes(path):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(path, attribute))


def _attributes(path: Path) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError:
        return []


def sync_directory(directory: Path) -> None:
    """Have what was renamed, made or removed in a directory on the disk. Raises OSError."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
