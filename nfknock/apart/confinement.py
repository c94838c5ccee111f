"""How a process gives up, for good, all that it may do but to go on with what it holds."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable

from nfknock import rights

# Nobody, as every Linux has it; files of its own it has none.
_NOBODY = 65534
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)


def confine() -> None:
    """Give up every right: no capability, no other file or socket, no second process, no core. Raises OSError.

    From then on nothing can be opened, so everything has to be imported. It ends with the thread that started it.
    """
    _try(rights.drop_bounds)
    if os.geteuid() == 0:
        _try(lambda: os.setgroups([]))
        _try(lambda: os.setresgid(_NOBODY, _NOBODY, _NOBODY))
        _try(lambda: os.setresuid(_NOBODY, _NOBODY, _NOBODY))
    rights.set_ambient(0)
    # The sandbox of a unit may forbid capset(2). Whoever is not root was started without capabilities to use then. What
    # may be inherited beyond that takes a program file that has it as well, and these are void from here on.
    _try(lambda: rights.set_capabilities(0))
    if rights.capabilities():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    rights.prctl(rights.SET_NO_NEW_PRIVS, 1)
    rights.prctl(rights.SET_DUMPABLE, 0)
    # After the change of user, which takes it back.
    rights.prctl(rights.SET_DEATH_SIGNAL, signal.SIGKILL)
    for limit in _LIMITS:
        resource.setrlimit(limit, (0, 0))


def _try(step: Callable[[], None]) -> None:
    """Take a step that not everybody can: root without that capability, or in a namespace that has no other user."""
    try:
        step()
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EINVAL):
            raise
