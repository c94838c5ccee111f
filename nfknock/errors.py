"""What can go wrong for an operator, as one small tree.

Every message is one line that says what was tried, on what, why it failed and, where there is one, the mend.
Strangers' packets never raise: they are data.
"""

from __future__ import annotations


class NfknockError(Exception):
    """Something that was asked for could not be done."""

    exit_code = 1


class ConfigError(NfknockError):
    """The configuration, or the call itself, is wrong."""

    exit_code = 2


class BackendError(NfknockError):
    """The firewall could not be read or changed; it is as it was."""


class BusyError(BackendError):
    """Another program is changing the same; trying again later may work."""


class LockHeldError(BusyError):
    """Another program holds the xtables lock."""


class TrackingError(NfknockError):
    """Connection tracking cannot be read or told."""


class ReaderError(NfknockError):
    """Packets cannot be read from where the configuration says."""


class DaemonError(NfknockError):
    """The daemon cannot start or cannot be reached."""


class ClientError(NfknockError):
    """A knock could not be sent."""


class OneTimeError(NfknockError):
    """A file of one-time sequences cannot be read or marked, or has no such sequence; nothing was marked."""


class UsedUpError(OneTimeError):
    """A file of one-time sequences has none any more."""


class MissingDependencyError(NfknockError):
    """A library that only one of the extras brings is not installed."""

    def __init__(self, library: str, extra: str = "server") -> None:
        where = "on a server run" if extra == "server" else "run"
        super().__init__(f"{library} is not installed; {where}: pip install 'nfknock[{extra}]'")
