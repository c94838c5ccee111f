"""Checks of what else on this host has a hand in its packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nfknock.backends.nftables import standing
from nfknock.core.plan import ReaderKind
from nfknock.daemon.control import ask_daemon
from nfknock.doctor.findings import Finding, Level, Patient
from nfknock.errors import DaemonError
from nfknock.host import legacy, nftread
from nfknock.host.conflicts import all_conflicts, legacy_conflicts
from nfknock.host.forwards import forwards, has_docker
from nfknock.readers import owners

_UFW = Path("/etc/ufw/ufw.conf")
_FIREWALLD = Path("/run/firewalld.pid")


def stranger_on(kind: ReaderKind, number: int) -> owners.Owner | None:
    """Return who has a queue or group that is not our own daemon, None if it is that, or nobody. Raises OSError."""
    try:
        owner = owners.owner(kind, number)
    except FileNotFoundError:
        return None
    if owner is None:
        return None
    try:
        daemon = ask_daemon()
    except DaemonError:
        return None  # there is one, and it does not answer
    return owner if daemon is None or _port(daemon) != owner.port else None


def _port(daemon: dict[str, Any]) -> int | None:
    """Return the netlink port by which a daemon reads; an older one does not say, and mostly it is its process id."""
    return dict(daemon.get("reader", {})).get("port", daemon.get("pid"))


def queue_is_free(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether another program has our queue."""
    owner = stranger_on(patient.reader, patient.queue)
    title = f"{owners.TITLES[patient.reader]} {patient.queue}"
    if owner is None:
        yield Finding(check, "ok", f"{title} is free, or our own daemon's")
        return
    mend = "stop that program, or choose another number with `queue` under [reader]"
    yield Finding(check, "fault", f"{owner.name} has {title}", mend)


def lets_pass(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the host's nf_tables ruleset drops what nfknock opens."""
    ruleset = nftread.read_foreign()
    if ruleset is None:
        yield Finding(check, "ok", "there is no nf_tables ruleset that could drop what nfknock opens")
        return
    if patient.config is None:
        chains = [str(chain) for chain in ruleset.chains.values() if chain.hook == "input"]
        text = f"there is an nf_tables ruleset; without a configuration it is not looked at: {', '.join(chains)}"
        yield Finding(check, "warning" if chains else "ok", text)
        return
    found = list(all_conflicts(ruleset, patient.config.plan, patient.config.doors))
    if patient.config.backend.name == "nftables":
        stand = standing.fitting(standing.read(), patient.config.plan, patient.config.backend.attach)
        found = [conflict for conflict in found if not standing.gets_by(conflict, stand)]
    for conflict in found:
        level: Level = "fault" if conflict.fate == "drops" else "warning"
        yield Finding(check, level, conflict.text, conflict.mend)
    if not found:
        yield Finding(check, "ok", "the host's nf_tables ruleset drops nothing that nfknock opens")


def lets_pass_in_legacy(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the host's legacy tables drop what nfknock opens in nf_tables."""
    if patient.config and not patient.writes_legacy:
        for text, mend in legacy_conflicts(patient.config.plan, patient.config.doors):
            yield Finding(check, "fault", text, mend)


def has_no_ufw(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether ufw guards this host too."""
    try:
        is_enabled = "ENABLED=yes" in _UFW.read_text().split()
    except OSError:
        is_enabled = False
    if is_enabled or _has_chain("ufw"):
        yield _beside(check, patient, "ufw", "ufw disable")


def has_no_firewalld(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether firewalld guards this host too."""
    ruleset = _ruleset()
    if _FIREWALLD.exists() or (ruleset and any(table == "firewalld" for _family, table, _name in ruleset.chains)):
        yield _beside(check, patient, "firewalld", "systemctl disable --now firewalld")


def _beside(check: str, patient: Patient, name: str, command: str) -> Finding:
    if not patient.writes_legacy and not _has_legacy_chain(name):
        return Finding(check, "ok", f"{name} is active too: what nfknock opens passes it by a rule of nfknock's there")
    text = f"{name} is active too: only what both let in is open, so its open ports must stand under `allow` as well"
    return Finding(check, "warning", text, f"name them there, or run: {command}")


def _has_chain(prefix: str) -> bool:
    ruleset = _ruleset()
    names = [name for _family, _table, name in ruleset.chains] if ruleset else []
    return _are_of(prefix, names) or _has_legacy_chain(prefix)


def _are_of(prefix: str, names: Iterable[str]) -> bool:
    return any(name.startswith((f"{prefix}-", f"{prefix}6-")) for name in names)


def _has_legacy_chain(prefix: str) -> bool:
    names: list[str] = []
    versions: tuple[legacy.Version, ...] = (4, 6)
    for version in versions:
        try:
            table = legacy.read("filter", version)
        except OSError:
            continue
        names += table.names.values() if table else ()
    return _are_of(prefix, names)


def _ruleset() -> nftread.Ruleset | None:
    try:
        return nftread.read_foreign()
    except OSError:
        return None


def forwards_nothing(check: str, patient: Patient) -> Iterator[Finding]:
    """Say which ports are sent on to containers: those never come by INPUT, whatever nfknock does."""
    opened = {port: door.name for door in (patient.config.doors if patient.config else ()) for port in door.opens_here}
    found = forwards(nftread.read_foreign())
    for forward in found:
        who = "Docker publishes" if forward.is_docker else "a DNAT rule sends on"
        mend = "publish it on 127.0.0.1 alone, or have a door open it with `to`"
        mend = mend if forward.is_docker else "take that rule out"
        door = opened.get(forward.port)
        text = f"{who} {forward.port}, which never comes by INPUT: nfknock does not guard it"
        if door:
            yield Finding(check, "fault", f"{text}, though the door {door} opens it", mend)
        else:
            yield Finding(check, "warning", text, f"{mend}, if it is meant to be guarded")
    if not found and has_docker():
        yield Finding(check, "ok", "Docker is here, and publishes no port")
