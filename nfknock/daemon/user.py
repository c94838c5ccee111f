"""A daemon that was started by root and goes on as an ordinary user: what it needs is handed over first."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from nfknock.backends.xtables.lock import lock_path
from nfknock.daemon.control import runtime_directory
from nfknock.daemon.journal import state_directory
from nfknock.errors import ConfigError, DaemonError
from nfknock.host import capabilities


def step_down(name: str) -> None:
    """Become the user of that name, if there is one to become. Raises ConfigError, DaemonError."""
    if not name:
        return
    user = capabilities.find_user(name)
    if user.pw_uid == os.geteuid():
        return  # whoever supervises us has seen to it
    if os.geteuid() != 0:
        raise ConfigError(f"daemon.user: only root can become {name}; start the daemon as root, or as {name}")
    try:
        _hand_over(runtime_directory(), user, 0o755)
        _hand_over(state_directory(), user, 0o700)
        _share_lock(user)
    except OSError as exc:
        raise DaemonError(f"handing {exc.filename} over to {name}: {(exc.strerror or str(exc)).lower()}") from exc
    capabilities.become(user)
    # Not everything is loaded by now.
    if not os.access(Path(__file__), os.R_OK):
        raise ConfigError(f"daemon.user: {name} cannot read nfknock itself, in {Path(__file__).parents[1]}")


def _hand_over(directory: Path, user: pwd.struct_passwd, mode: int) -> None:
    """Give a directory of root's away, with what is in it. Raises OSError."""
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    if directory.stat().st_uid != 0:
        return  # it was given away before, and somebody else may have put something there
    for path in directory.iterdir():
        os.lchown(path, user.pw_uid, user.pw_gid)
    os.chown(directory, user.pw_uid, user.pw_gid)


def _share_lock(user: pwd.struct_passwd) -> None:
    """Let the user's group open the lock for reading, which is all that it takes. Raises OSError."""
    descriptor = os.open(lock_path(), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        os.fchown(descriptor, -1, user.pw_gid)
        os.fchmod(descriptor, 0o640)
    finally:
        os.close(descriptor)
