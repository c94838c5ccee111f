"""What `apply` refuses to do, and why: to lock its caller out, or to open what the host shuts again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from nfknock.backends import Backend
from nfknock.backends.nftables import standing
from nfknock.config import Config
from nfknock.core.model import Family, Opening, Port, family_of
from nfknock.core.plan import Plan
from nfknock.core.reach import Visitor, way_in
from nfknock.daemon.counting import locked_out
from nfknock.doctor.neighbours import stranger_on
from nfknock.errors import BackendError, NfknockError
from nfknock.host import legacy, nftread, ssh
from nfknock.host.conflicts import all_conflicts, legacy_conflicts
from nfknock.host.interfaces import entrances, matching
from nfknock.host.nftables import judge
from nfknock.host.probe import Probe, network_of
from nfknock.readers import owners

_HOLES = "NFKNOCK_HOLES"


@dataclass(frozen=True, slots=True)
class Reason:
    """Something that speaks against applying a configuration; what is not certain is but a warning."""

    text: str
    mend: str
    is_certain: bool = True
    is_about_doors: bool = False
    """Whether it holds even where the firewall stays as it is."""

    def __str__(self) -> str:
        return f"{self.text}; {self.mend}"


def refuse_or_warn(
    config: Config, backend: Backend, *, force: bool = False, dry_run: bool = False, as_json: bool = False
) -> list[str]:
    """Return what the administrator should know before this configuration is applied, one line each.

    Raises NfknockError, with the reasons said, when it should not be. Nothing is changed either way. What would
    change nothing is not refused: the firewall is as it was wanted before.
    """
    reasons = list(_reasons(config, backend))
    refused = [reason for reason in reasons if reason.is_certain]
    warnings = [str(reason) for reason in reasons if not reason.is_certain]
    if force or not _weighs(refused, config, backend):
        return [*map(str, refused), *warnings]
    if dry_run:
        return [*(f"would be refused: {reason}" for reason in refused), *warnings]
    for line in (*(f"refused: {reason}" for reason in refused), *(f"warning: {line}" for line in warnings)):
        click.echo(line, err=True)
    if as_json:
        report = {"changed": False, "difference": [], "warnings": warnings, "refused": [*map(str, refused)]}
        click.echo(json.dumps(report))
    raise NfknockError("nothing was changed, for what is said above; `apply --force` does it all the same")


def _weighs(refused: list[Reason], config: Config, backend: Backend) -> bool:
    """Whether anything of that would come by applying it, and is not so already."""
    if any(reason.is_about_doors for reason in refused):
        return True
    return bool(refused) and backend.apply(config.plan, dry_run=True).changed


def _reasons(config: Config, backend: Backend) -> Iterator[Reason]:
    yield from _locks_out(config, backend)
    yield from _is_dropped(config)
    yield from _cannot_attach(config)
    yield from _shares_queue(config)


def _locks_out(config: Config, backend: Backend) -> Iterator[Reason]:
    visitor = caller()
    if visitor is None or way_in(config.plan, config.doors, visitor):
        return
    # Whatever stands now: a hole may just have ended, and the same knocks open another door.
    is_lost = locked_out(config, visitor) is not None
    if not (is_lost or _would_be_shut(config, visitor, backend)):
        return
    port, source = visitor.port, visitor.source
    yield Reason(
        f"this shuts {port} to {source}, from where you are here over SSH",
        f'add {{ open = "{port}", from = "{source}" }} to `allow` under [firewall], or have a door open {port}',
        is_about_doors=is_lost,
    )


def caller() -> Visitor | None:
    """Return who calls us over SSH, None if nobody does."""
    if (session := ssh.session()) is None:
        return None
    return Visitor(source=session.source, port=Port(session.port), interface=session.interface)


def _would_be_shut(config: Config, visitor: Visitor, backend: Backend) -> bool:
    """Whether the port is not shut already, and no rule of the host's own lets this source in behind ours."""
    assert visitor.source is not None
    version: legacy.Version = 4 if family_of(visitor.source) == "ipv4" else 6
    probe = Probe(
        port=visitor.port,
        version=version,
        interface=visitor.interface or entrances(())[0][0],
        source=network_of(visitor.source),
    )
    # Who is in a set is known to the backend alone.
    is_let_in = any(
        hole.source == visitor.source and Opening(probe.port) in hole.opens and not hole.is_expired(time.time())
        for hole in backend.holes()
    )
    if config.backend.name == "nftables":
        return _would_be_shut_by_nftables(config, probe, is_let_in=is_let_in)
    try:
        table = legacy.read("filter", version)
    except OSError:
        return True  # unsure: then nobody is locked out
    if table is None:
        return True
    if not is_let_in and table.emptied(_HOLES).ends(probe) == {"drop"}:
        return False
    return table.ends(probe, without=legacy.OWN_CHAINS[:1], policy="drop") != {"accept"}


def _would_be_shut_by_nftables(config: Config, probe: Probe, *, is_let_in: bool) -> bool:
    """Whether nobody shuts the port yet, and we would: where the host's own chain has the last word, that decides."""
    family: Family = "ipv4" if probe.version == 4 else "ipv6"
    try:
        found = standing.read()
        shut = standing.fitting(found, config.plan, config.backend.attach).shut
        if family not in shut and not _is_hidden(config.plan, probe):
            return False
        return is_let_in or all(each.fate != "drops" for each in judge(found.ruleset, probe))
    except (BackendError, OSError):
        return True  # unsure: then nobody is locked out


def _is_hidden(plan: Plan, probe: Probe) -> bool:
    """Whether doors open the port where the packet comes in: it is shut there whoever has the last word."""
    is_theirs = not plan.interfaces or any(matching(each, [probe.interface]) for each in plan.interfaces)
    return is_theirs and probe.port in plan.opens


def _is_dropped(config: Config) -> Iterator[Reason]:
    yield from _is_dropped_by_nftables(config)
    if config.backend.name != "nftables":
        return
    try:
        for text, mend in legacy_conflicts(config.plan, config.doors):
            yield Reason(text, mend)
    except OSError as exc:
        text = f"the host's legacy tables could not be read ({(exc.strerror or str(exc)).lower()})"
        yield Reason(text, "they may drop what nfknock opens", is_certain=False)


def _is_dropped_by_nftables(config: Config) -> Iterator[Reason]:
    try:
        ruleset = nftread.read_foreign()
        stand = None
        if config.backend.name == "nftables":
            stand = standing.fitting(standing.read(), config.plan, config.backend.attach)
        for conflict in all_conflicts(ruleset, config.plan, config.doors) if ruleset else ():
            if stand and standing.gets_by(conflict, stand):
                continue
            yield Reason(conflict.text, conflict.mend, conflict.fate == "drops")
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        text = f"the host's nf_tables ruleset could not be read ({why})"
        yield Reason(text, "it may drop what nfknock opens", is_certain=False)


def _cannot_attach(config: Config) -> Iterator[Reason]:
    if config.backend.name != "nftables":
        return
    if why := standing.why_not_attached(standing.read(), config.backend.attach):
        yield Reason(why, "name another one, or none; until it is there nfknock stands without it")


def _shares_queue(config: Config) -> Iterator[Reason]:
    plan = config.plan
    try:
        owner = stranger_on(plan.reader, plan.queue)
    except OSError:
        return  # without root there is no telling, and no applying either
    if owner:
        mend = "stop that program, or choose another number with `queue` under [reader]"
        yield Reason(f"{owner.name} has {owners.TITLES[plan.reader]} {plan.queue}, and would get the knocks", mend)
