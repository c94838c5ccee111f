"""Errors of the kernel's sets, in words for the administrator."""

from __future__ import annotations

import errno
from enum import IntEnum

from nfknock.errors import BackendError


class Code(IntEnum):
    """What only sets have; linux/netfilter/ipset/ip_set.h."""

    NO_TYPE = 4098
    FULL = 4352


class NoTypeError(BackendError):
    """The kernel has no sets of that type."""


class explained:  # noqa: N801  (it stands where a function would)
    """Turns the library's errors into ours, with what was tried in front, but for those that mean it is `gone`."""

    def __init__(self, what: str, gone: tuple[int, ...] = ()) -> None:
        self.is_done = True
        self._what = what
        self._gone = gone

    def __enter__(self) -> explained:
        return self

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> bool:
        if exc is None or isinstance(exc, BackendError):
            return False
        code = getattr(exc, "code", None) or getattr(exc, "errno", None)
        if code in self._gone:
            self.is_done = False
            return True
        match code:
            case Code.FULL:
                mend = "it is full; raise `set_size` under [firewall] and run `nfknock apply`"
                raise BackendError(f"{self._what}: {mend}") from exc
            case Code.NO_TYPE:
                raise NoTypeError(f"{self._what}: this kernel has no such sets; it needs the modules of ipset") from exc
            case errno.EPERM:
                raise BackendError(f"{self._what}: permission denied; run this as root") from exc
            case errno.EINVAL | errno.EOPNOTSUPP:
                raise BackendError(f"{self._what}: this kernel has no ipset (CONFIG_IP_SET)") from exc
            case None:
                return False
            case _:
                reason = exc.args[-1] if exc.args else code
                raise BackendError(f"{self._what}: {str(reason).lower()} ({code})") from exc


def reading(what: str, exc: OSError) -> BackendError:
    """Return what to raise where the kernel could not be asked for something."""
    if isinstance(exc, PermissionError):
        return BackendError(f"reading {what}: permission denied; run this as root")
    return BackendError(f"reading {what}: {(exc.strerror or str(exc)).lower()}")
