"""The verbs of the iptables backend."""

from __future__ import annotations

import difflib
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from nfknock.backends import Change, FirewallState, tracking
from nfknock.backends.iptables import layout, record, transaction
from nfknock.backends.iptables.layout import FOUND, HOLES, INPUT, KNOCKS, MAIN, is_own
from nfknock.backends.tracking import Session
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.table import FilterTable, NoTableError
from nfknock.core.model import Family, Hole, IPAddress, Port, family_of
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, TrackingError


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

    def apply(self, plan: Plan, *, dry_run: bool = False) -> Change:
        wanted = {
            family: {
                chain: [binding.encode(family, spec) for spec in specs]
                for chain, specs in layout.chains(plan, family).items()
            }
            for family in self._tables
        }
        jumps = {family: binding.encode(family, layout.JUMP) for family in self._tables}

        def edit(table: FilterTable) -> bool:
            return _bring_to(table, wanted[table.family], jumps[table.family])

        if dry_run:
            return self._compare(edit)
        if self.state().applied:
            return self._change(edit)
        known, first = _adopt(frozenset())
        change = self._change(edit)
        # Once more, for those that were begun meanwhile: what they lost is sent again.
        _known, second = _adopt(known)
        return replace(change, warnings=(*(first or second), *self._bleak()))

    def remove(self) -> Change:
        warnings: dict[Family, str] = {}

        def edit(table: FilterTable) -> bool:
            changed, warning = _take_out(table)
            warnings[table.family] = warning
            return changed

        change = self._change(edit)
        return replace(change, warnings=tuple(filter(None, warnings.values())))

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        wanted = tuple(holes)
        standing: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            own = [hole for hole in wanted if family_of(hole.source) == table.family]
            standing[table.family] = _dig(table, own, self._clock())
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
            if HOLES in table.chains():
                found += record.read_holes(table.entries(HOLES))
        return found

    def state(self) -> FirewallState:
        policy: dict[Family, str | None] = {"ipv4": None, "ipv6": None}
        for family, table in self._tables.items():
            table.refresh()
            policy[family] = table.policy(INPUT)
        return FirewallState(applied=all(map(_stands, self._tables.values())), policy=policy)

    def _bleak(self) -> tuple[str, ...]:
        """Warn of what `remove` will put back, where that shuts the host off."""
        return tuple(
            f"{family}: INPUT had policy DROP and no rule; `nfknock remove` will restore just that"
            for family, table in self._tables.items()
            if FOUND["DROP"] in table.chains() and _is_bare(table)
        )

    def _tables_of(self, sources: Iterable[IPAddress]) -> list[FilterTable]:
        families = {family_of(source) for source in sources}
        if families - set(self._tables):
            raise BackendError("IPv6 is switched off in this kernel; nothing can be opened for an IPv6 address")
        return [table for family, table in self._tables.items() if family in families]

    def _close(self, is_meant: Callable[[Hole], bool], tables: list[FilterTable]) -> list[Hole]:
        closed: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            closed[table.family] = _fill_in(table, is_meant)
            return bool(closed[table.family])

        transaction.change(tables, edit)
        return [hole for some in closed.values() for hole in some]

    def _change(self, edit: transaction.Edit) -> Change:
        return Change(changed=transaction.change(list(self._tables.values()), edit))

    def _compare(self, edit: transaction.Edit) -> Change:
        """Make the edit in memory alone and say what it would change."""
        lines: list[str] = []
        for table in self._tables.values():
            table.refresh()
            before = _saved(table)
            edit(table)
            after = _saved(table)
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
    return Hole(door="example", source=source, ports=(Port(1), Port(1, "udp")), opened_at=0.0, closes_at=1.0)


def _bring_to(table: FilterTable, wanted: dict[str, list[Encoded]], jump: Encoded) -> bool:
    """Edit a table so that it holds our part; False if it did already."""
    chains = table.chains()
    new = [name for name in (MAIN, HOLES, KNOCKS) if name not in chains]
    if not set(FOUND.values()) & set(chains):
        new.append(FOUND[table.policy(INPUT)])
    for chain in new:
        table.create_chain(chain)
    outdated = [chain for chain, rules in wanted.items() if not table.holds(chain, rules)]
    for chain in outdated:
        table.fill(chain, (rule.entry for rule in wanted[chain]))
    entries = table.entries(INPUT)
    misplaced = [entry.jump for entry in entries].count(MAIN) != 1 or not jump.equals(entries[0])
    if misplaced:
        table.set_jumps(INPUT, MAIN, [(0, jump.entry)])
    is_open = table.policy(INPUT) != "DROP"
    if is_open:
        table.set_policy(INPUT, "DROP")
    return bool(new or outdated or misplaced or is_open)


def _take_out(table: FilterTable) -> tuple[bool, str]:
    """Edit a table so that nothing of ours is left; say whether there was anything, and what to warn of."""
    own = [name for name in table.chains() if is_own(name)]
    if not own:
        return False, ""
    warning = _restore_policy(table, [policy for policy, chain in FOUND.items() if chain in own])
    table.set_jumps(INPUT, MAIN, ())
    for chain in own:
        table.fill(chain, ())
    for chain in own:
        table.delete_chain(chain)
    return True, warning


def _restore_policy(table: FilterTable, found: list[str]) -> str:
    """Give INPUT its policy back; return a warning where it is not known, or shuts the host off."""
    if len(found) == 1:
        table.set_policy(INPUT, found[0])
        if found == ["DROP"] and _is_bare(table):
            return f"{table.family}: INPUT has policy DROP and no rule again, as it was found: nothing new comes in"
        return ""
    if _is_bare(table):
        # Nothing says what it was. DROP without a rule would lock everybody out, and there is no rule to be undone.
        table.set_policy(INPUT, "ACCEPT")
        return f"{table.family}: nothing tells which policy INPUT had; it is ACCEPT now, since no rule is there"
    return f"{table.family}: nothing tells which policy INPUT had; it stays {table.policy(INPUT)}"


def _is_bare(table: FilterTable) -> bool:
    """Whether INPUT has no rule but ours."""
    return all(entry.jump == MAIN for entry in table.entries(INPUT))


def _dig(table: FilterTable, holes: Iterable[Hole], now: float) -> list[Hole]:
    """Edit a table so that these holes are open; return them as they then stand."""
    if not _stands(table):
        raise BackendError("the firewall is not in place; run `nfknock apply` first")
    wanted = {hole.key: hole for hole in holes}
    sources = {hole.source.packed for hole in wanted.values()}
    near = [entry for entry in table.entries(HOLES) if entry.packed_source in sources]
    same = [(entry, part) for entry, part in record.parts(near) if part.key in wanted]
    for entry, _part in same:
        table.delete(HOLES, entry)
    for older in record.read_holes(entry for entry, part in same if not part.is_expired(now)):
        wanted[older.key] = wanted[older.key].renewed(older)
    for hole in wanted.values():
        for entry in record.entries_of(hole):
            table.append(HOLES, entry)
    return list(wanted.values())


def _fill_in(table: FilterTable, is_meant: Callable[[Hole], bool]) -> list[Hole]:
    """Edit a table so that the holes that are meant are gone; return them."""
    if HOLES not in table.chains():
        return []
    mine = [entry for entry, hole in record.parts(table.entries(HOLES)) if is_meant(hole)]
    for entry in mine:
        table.delete(HOLES, entry)
    return record.read_holes(mine)


def _stands(table: FilterTable) -> bool:
    """Whether packets come to our chains, and to a closed door last.

    Another rule may stand in front of our jump: fail2ban puts its own there whenever it starts.
    """
    return (
        any(entry.jump == MAIN for entry in table.entries(INPUT))
        and table.policy(INPUT) == "DROP"
        and {MAIN, HOLES, KNOCKS} <= set(table.chains())
        and any(entry.jump == KNOCKS for entry in table.entries(MAIN))
    )


def _saved(table: FilterTable) -> list[str]:
    """Our part of a table, and INPUT, in iptables-save notation without counters."""
    chains = [name for name in table.chains() if is_own(name)]
    heads = [f":{INPUT} {table.policy(INPUT)}", *(f":{name} -" for name in chains)]
    return heads + [line for chain in (INPUT, *chains) for line in table.describe(chain)]


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
