"""The verbs of the iptables backend."""

from __future__ import annotations

import difflib
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from nfknock.backends import Change, FirewallState, Strange, forwarding, tracking
from nfknock.backends.iptables import edits, record, transaction
from nfknock.backends.iptables.edits import Wanted
from nfknock.backends.iptables.layout import ENTRANCES, FOUND, INPUT, is_own
from nfknock.backends.tracking import Session
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.table import FilterTable, NoTableError
from nfknock.core.model import Family, Hole, IPAddress, Opening, Port, family_of
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, TrackingError

# What a write takes when nobody is in its way, in seconds.
_MOMENT = 0.1


class IptablesBackend:
    """Writes legacy iptables in-process. See `nfknock.backends.Backend` for the verbs."""

    name = "iptables"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        # First of all, so that what is missing is said before anything else is found wrong.
        binding.iptc()
        self._clock = clock
        families: tuple[Family, ...] = ("ipv4", "ipv6") if has_ipv6() else ("ipv4",)
        self._tables = {family: FilterTable(family) for family in families}

    def probe(self) -> list[str]:
        for table in self._tables.values():
            try:
                table.refresh()
            except NoTableError:
                # The iptables command loads these modules itself; a host that was just booted has not got them.
                _load_module(table.family)
                table.refresh()
            # Loads every extension that a hole needs: what is missing is found now, and the first knock is not slower.
            record.entries_of(_example(table.family))
        if "ipv6" not in self._tables:
            return ["IPv6 is switched off in this kernel: IPv4 alone is guarded"]
        return []

    def stands(self) -> bool:
        for table in self._tables.values():
            table.refresh()
        return any(is_own(chain) for table in self._tables.values() for chain in table.chains())

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        wanted = {family: Wanted.of(plan, family) for family in self._tables}
        brought = tuple(holes)

        def edit(table: FilterTable) -> bool:
            is_changed = edits.bring_to(table, wanted[table.family])
            own = [hole for hole in brought if family_of(hole.source) == table.family]
            edits.dig(table, own, self._clock())
            return is_changed or bool(own)

        idle = tuple(forwarding.idle(opening.to for opening in plan.forwarded if opening.to))
        if dry_run:
            return replace(self._compare(wanted), warnings=idle)
        if self.state().applied:
            return replace(self._change(edit), warnings=idle)
        known, first = _adopt(frozenset())
        change = self._change(edit)
        # Once more, for those that were begun meanwhile: what they lost is sent again.
        _known, second = _adopt(known)
        return replace(change, warnings=(*(first or second), *self._bleak(), *idle))

    def remove(self) -> Change:
        warnings: dict[Family, str] = {}

        def edit(table: FilterTable) -> bool:
            changed, warning = edits.take_out(table)
            warnings[table.family] = warning
            return changed

        change = self._change(edit)
        return replace(change, warnings=tuple(filter(None, warnings.values())))

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        wanted = tuple(holes)
        standing: dict[Family, list[Hole]] = {}
        asked_at = self._clock()

        def edit(table: FilterTable) -> bool:
            now = self._clock()
            # Another program's hold on the lock shortens nobody's time, nor does a clock that is set meanwhile.
            late = now - asked_at if abs(now - asked_at) > _MOMENT else 0.0
            own = [hole.put_off(late) for hole in wanted if family_of(hole.source) == table.family]
            standing[table.family] = edits.dig(table, own, now)
            return True

        transaction.change(self._tables_of(hole.source for hole in wanted), edit)
        return [hole for some in standing.values() for hole in some]

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        keys = set(holes)
        return self._close(lambda hole: hole.key in keys, self._tables_of(source for _door, source in keys))

    def sweep(self) -> list[Hole]:
        now = self._clock()
        if not any(hole.is_expired(now) for hole in self.holes()):
            return []
        # Looked at again under the lock: what was renewed meanwhile stays.
        return self._close(lambda hole: hole.is_expired(now), list(self._tables.values()))

    def holes(self) -> list[Hole]:
        found: list[Hole] = []
        for table in self._tables.values():
            table.refresh()
            found += edits.holes(table)
        return found

    def state(self, plan: Plan | None = None) -> FirewallState:
        policy: dict[Family, str | None] = {"ipv4": None, "ipv6": None}
        damage: list[str] = []
        for family, table in self._tables.items():
            table.refresh()
            policy[family] = table.policy(INPUT)
            damage += edits.damage(table, Wanted.of(plan, family) if plan else None)
        return FirewallState(policy=policy, damage=tuple(damage))

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        live = [hole for hole in holes if not hole.is_expired(self._clock())]
        wanted = {family: Wanted.of(plan, family) for family in self._tables}
        missing: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            if not edits.damage(table, wanted[table.family]):
                return False
            own = [hole for hole in live if family_of(hole.source) == table.family]
            missing[table.family] = edits.put_back(table, wanted[table.family], own)
            return True

        self._change(edit)
        return [hole for some in missing.values() for hole in some]

    def remember(self) -> Callable[[], None]:
        before = {}
        for family, table in self._tables.items():
            table.refresh()
            before[family] = table.snapshot(is_own, INPUT, ENTRANCES)

        def edit(table: FilterTable) -> bool:
            return edits.take_back(table, before[table.family])

        def take_back() -> None:
            self._change(edit)

        return take_back

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> list[Strange]:
        gone: dict[Family, list[Strange]] = {}

        def edit(table: FilterTable) -> bool:
            gone[table.family] = edits.clear_out(table, doors)
            return bool(gone[table.family])

        self._change(edit)
        return [each for some in gone.values() for each in some]

    def _bleak(self) -> tuple[str, ...]:
        """Warn of what `remove` will put back, where that shuts the host off."""
        return tuple(
            f"{family}: INPUT had policy DROP and no rule; `nfknock remove` will restore just that"
            for family, table in self._tables.items()
            if FOUND["DROP"] in table.chains() and edits.is_bare(table)
        )

    def _tables_of(self, sources: Iterable[IPAddress]) -> list[FilterTable]:
        families = {family_of(source) for source in sources}
        if families - set(self._tables):
            raise BackendError("IPv6 is switched off in this kernel; nothing can be opened for an IPv6 address")
        return [table for family, table in self._tables.items() if family in families]

    def _close(self, is_meant: Callable[[Hole], bool], tables: list[FilterTable]) -> list[Hole]:
        closed: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            closed[table.family] = edits.fill_in(table, is_meant)
            return bool(closed[table.family])

        transaction.change(tables, edit)
        return [hole for some in closed.values() for hole in some]

    def _change(self, edit: transaction.Edit) -> Change:
        return Change(changed=transaction.change(list(self._tables.values()), edit))

    def _compare(self, wanted: dict[Family, Wanted]) -> Change:
        """Make the edits in memory alone and say what they would change."""
        lines: list[str] = []
        for table in self._tables.values():
            table.refresh()
            entrances = edits.entrances(table, wanted[table.family])
            before = edits.saved(table, entrances)
            edits.bring_to(table, wanted[table.family])
            after = edits.saved(table, entrances)
            table.refresh()
            changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
            lines += [f"# {table.family}", *changed] if changed else []
        return Change(changed=bool(lines), difference=tuple(lines))


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all. If it does, its table must be guarded too, or nothing is."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _example(family: Family) -> Hole:
    source = ip_address("192.0.2.2" if family == "ipv4" else "2001:db8::2")
    opens = (Opening(Port(1)), Opening(Port(1, "udp")))
    return Hole(door="example", source=source, opens=opens, opened_at=0.0, closes_at=1.0)


def _adopt(known: frozenset[Session]) -> tuple[frozenset[Session], tuple[str, ...]]:
    """Let sessions live on that stand, but for those that are known; return them all, and warnings."""
    standing = frozenset(tracking.standing_sessions())
    try:
        tracking.adopt_sessions(standing - known)
    except TrackingError as exc:
        return standing, (f"sessions that stand already may be cut: {exc}",)
    return standing, ()


def _load_module(family: Family) -> None:
    """Load the table's kernel module; what comes of it shows when the table is read again."""
    try:
        program = Path("/proc/sys/kernel/modprobe").read_text().strip()
        module = "iptable_filter" if family == "ipv4" else "ip6table_filter"
        # The path is the one that the kernel itself runs for this.
        subprocess.run([program, "-q", module], check=False, capture_output=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        pass
