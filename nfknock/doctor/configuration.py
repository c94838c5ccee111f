"""Checks of the configuration: is there one, who can read it, does what it names exist."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from nfknock import files
from nfknock.doctor.findings import Finding, Patient
from nfknock.host.interfaces import LOOPBACK, matching, names


def is_right(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether the configuration can be used."""
    if patient.error:
        yield Finding(check, "fault", patient.error, "mend it; `nfknock check` reads it again")
    elif patient.config is None:
        yield Finding(check, "warning", f"there is no {patient.path} yet", "`nfknock init` writes one")
    else:
        count = len(patient.config.doors)
        yield Finding(check, "ok", f"{patient.path}: {count} {'door' if count == 1 else 'doors'}")
        for line in patient.config.warnings:
            yield Finding(check, "warning", line)


def is_secret(check: str, patient: Patient) -> Iterator[Finding]:
    """Say whether anybody but its owner can read the sequences, or change them."""
    try:
        mode = stat.S_IMODE(patient.path.stat().st_mode)
        others = files.exposed(patient.path)
    except FileNotFoundError:
        return
    mend = f"chmod 600 {patient.path}"
    if others & 0o022:
        yield Finding(check, "fault", f"others can change {patient.path} (mode {mode:04o})", mend)
    elif others & 0o044:
        yield Finding(check, "fault", f"others can read the knocks in {patient.path} (mode {mode:04o})", mend)
    else:
        yield Finding(check, "ok", f"{patient.path} is nobody else's to read")


def has_its_interfaces(check: str, patient: Patient) -> Iterator[Finding]:
    """Say which interfaces are named and not there: a typing error opens nothing, or guards nothing."""
    if patient.config is None:
        return
    plan = patient.config.plan
    wanted = {*plan.interfaces, *(rule.interface for rule in (*plan.baseline, *plan.allowed) if rule.interface)}
    present = [*names(), LOOPBACK]
    absent = sorted(name for name in wanted if not matching(name, present))
    for name in absent:
        mend = "mend the name, unless it comes later"
        yield Finding(check, "warning", f"there is no interface {name}, which {patient.path} names", mend)
    if not absent and plan.interfaces:
        yield Finding(check, "ok", f"the interfaces are there: {', '.join(plan.interfaces)}")
