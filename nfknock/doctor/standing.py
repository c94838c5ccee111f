"""Checks of how nfknock itself stands here: its firewall, its daemon, the lock, the clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nfknock.backends import make_backend
from nfknock.backends.iptables.backend import has_ipv6
from nfknock.backends.xtables.lock import lock_path, xtables_lock
from nfknock.core.plan import BackendChoice
from nfknock.daemon.control import ask_daemon
from nfknock.doctor.findings import Finding, Level, Patient
from nfknock.errors import BackendError, DaemonError, LockHeldError, NfknockError
from nfknock.host import legacy, nftread
from nfknock.host.clock import is_synchronised

_CHAIN = "NFKNOCK"
_VERSIONS: tuple[legacy.Version, ...] = (4, 6)
_PUT_IN = "run: nfknock apply"


def lock_is_usable(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the xtables lock can be had; it is tried for an instant."""
    if not patient.writes_legacy:
        return
    path = lock_path()
    # What an ordinary user may not do is no fault of the host's.
    level: Level = "warning" if os.geteuid() else "fault"
    if not path.exists():
        # To take it would create it.
        if os.access(path.parent, os.W_OK | os.X_OK):
            yield Finding(check, "ok", f"the xtables lock {path} can be created")
        else:
            mend = "run this as root" if os.geteuid() else "let the service write it"
            yield Finding(check, level, f"the xtables lock {path} cannot be created", mend)
        return
    try:
        with xtables_lock(timeout=0):
            yield Finding(check, "ok", f"the xtables lock {path} is free")
    except LockHeldError as exc:
        who = str(exc).partition(" for more than")[0]
        yield Finding(check, "warning", who, "if it stays so, end that program")
    except BackendError as exc:
        yield Finding(check, level, str(exc), "run this as root" if os.geteuid() else "")


def is_in_place(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether what `apply` puts in place stands."""
    is_legacy = any(_stands(version) for version in _VERSIONS)
    if not (is_legacy or _stands_in_nftables()):
        yield Finding(check, "warning", "the firewall is not in place: nothing is guarded", _PUT_IN)
        return
    if is_legacy and not all("filter" in (legacy.tables(version) or ()) for version in _families()):
        yield Finding(check, "fault", "the firewall is in place for one family alone", _PUT_IN)
        return
    config = patient.config
    try:
        state = make_backend(config.backend if config else BackendChoice(name="auto")).state(
            config.plan if config else None
        )
    except NfknockError as exc:
        yield Finding(check, "fault", f"the firewall cannot be read: {exc}")
        return
    for damage in state.damage:
        yield Finding(check, "fault", f"the firewall was changed: {damage}", _PUT_IN)
    if state.applied:
        yield Finding(check, "ok", "the firewall is in place")


def guards_ipv6(check: str, _patient: Patient) -> Iterator[Finding]:
    """Say whether IPv6 is a way round the guard."""
    if 6 not in _families():
        yield Finding(check, "ok", "IPv6 is off")
    elif _stands_in_nftables():
        yield Finding(check, "ok", "IPv6 is on, and guarded like IPv4")
    elif _stands(4) and not _stands(6):
        yield Finding(check, "fault", "IPv6 is on, and has no rules: whoever comes over IPv6 comes in", _PUT_IN)
    elif _stands(6):
        yield Finding(check, "ok", "IPv6 is on, and guarded like IPv4")


def daemon_runs(check: str, _patient: Patient) -> Iterator[Finding]:
    """Say whether anybody listens to knocks."""
    mend = "start it: nfknock run"
    try:
        daemon = ask_daemon()
    except DaemonError as exc:
        if os.geteuid():
            yield Finding(check, "warning", str(exc), "run this as root")
        else:
            yield Finding(check, "fault", str(exc), "restart it")
        return
    if daemon is None:
        yield Finding(check, "warning", "no daemon runs here: knocks are dropped", mend)
    else:
        yield Finding(check, "ok", f"the daemon runs: process {daemon.get('pid')}")


def clock_is_right(check: str, _patient: Patient) -> Iterator[Finding]:
    """Say whether the clock is kept right: the kernel closes holes by date."""
    mend = "run a time service: systemd-timesyncd or chrony"
    match is_synchronised():
        case True:
            yield Finding(check, "ok", "the clock is synchronised")
        case False:
            text = "the clock is not synchronised, and the kernel closes holes by date"
            yield Finding(check, "warning", text, mend)
        case _:
            yield Finding(check, "warning", "nothing tells whether the clock is synchronised", mend)


def _stands_in_nftables() -> bool:
    """Whether our table is there, which is of both families. Raises OSError."""
    ruleset = nftread.read()
    return ruleset is not None and any(map(nftread.is_own, ruleset.chains))


def _families() -> tuple[legacy.Version, ...]:
    return (4, 6) if has_ipv6() else (4,)


def _stands(version: legacy.Version) -> bool:
    """Whether our chain is there. Raises OSError."""
    table = legacy.read("filter", version)
    return table is not None and _CHAIN in table.names.values()
