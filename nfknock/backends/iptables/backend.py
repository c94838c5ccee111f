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
from nfknock.backends.iptables.layout import FOUND_PREFIX, HOLES, INPUT, KNOCKS, MAIN, is_own
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.table import FilterTable, NoTableError
from nfknock.core.model import Family, Hole, IPAddress, Port, family_of
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, NfknockError


class IptablesBackend:
    """Writes legacy iptables in-process. See `nfknock.backends.Backend` for the verbs."""

    name = "iptables"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
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
        _keep_sessions()
        change = self._change(edit)
        # Once more, for those that were begun meanwhile: what they lost is sent again.
        return replace(change, warnings=_keep_sessions())

    def remove(self) -> Change:
        return self._change(_take_out)

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
    found = [name for name in chains if name.startswith(FOUND_PREFIX)]
    new = [name for name in (MAIN, HOLES, KNOCKS) if name not in chains]
    if not found:
        new.append(FOUND_PREFIX + table.policy(INPUT))
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


def _take_out(table: FilterTable) -> bool:
    """Edit a table so that nothing of ours is left; False if nothing was there."""
    own = [name for name in table.chains() if is_own(name)]
    if not own:
        return False
    for chain in own:
        if chain.startswith(FOUND_PREFIX):
            table.set_policy(INPUT, chain.removeprefix(FOUND_PREFIX))
    table.set_jumps(INPUT, MAIN, ())
    for chain in own:
        table.fill(chain, ())
    for chain in own:
        table.delete_chain(chain)
    return True


def _dig(table: FilterTable, holes: Iterable[Hole], now: float) -> list[Hole]:
    """Edit a table so that these holes are open; return them as they then stand."""
    if HOLES not in table.chains():
        raise BackendError("the firewall is not in place; run `nfknock apply` first")
    standing: dict[tuple[str, IPAddress], Hole] = {}
    for hole in holes:
        entries = [entry for entry in table.entries(HOLES) if entry.source == hole.source]
        same = [(entry, part) for entry, part in record.parts(entries) if part.key == hole.key]
        for entry, _part in same:
            table.delete(HOLES, entry)
        older = record.read_holes(entry for entry, part in same if not part.is_expired(now))
        standing[hole.key] = hole.renewed(older[0]) if older else hole
        for entry in record.entries_of(standing[hole.key]):
            table.append(HOLES, entry)
    return list(standing.values())


def _fill_in(table: FilterTable, is_meant: Callable[[Hole], bool]) -> list[Hole]:
    """Edit a table so that the holes that are meant are gone; return them."""
    if HOLES not in table.chains():
        return []
    mine = [entry for entry, hole in record.parts(table.entries(HOLES)) if is_meant(hole)]
    for entry in mine:
        table.delete(HOLES, entry)
    return record.read_holes(mine)


def _stands(table: FilterTable) -> bool:
    """Whether packets come to our chains first, and to a closed door last."""
    entries = table.entries(INPUT)
    return (
        bool(entries)
        and entries[0].jump == MAIN
        and table.policy(INPUT) == "DROP"
        and {MAIN, HOLES, KNOCKS} <= set(table.chains())
        and any(entry.jump == KNOCKS for entry in table.entries(MAIN))
    )


def _saved(table: FilterTable) -> list[str]:
    """Our part of a table, and INPUT, in iptables-save notation without counters."""
    chains = [name for name in table.chains() if is_own(name)]
    heads = [f":{INPUT} {table.policy(INPUT)}", *(f":{name} -" for name in chains)]
    return heads + [line for chain in (INPUT, *chains) for line in table.describe(chain)]


def _keep_sessions() -> tuple[str, ...]:
    """Let sessions live on that stood before there was anything to track them; return warnings."""
    try:
        tracking.adopt_sessions(tracking.standing_sessions())
    except NfknockError as exc:
        return (f"sessions that stand already may be cut: {exc}",)
    return ()


def _load_module(family: Family) -> None:
    """Load the table's kernel module; what comes of it shows when the table is read again."""
    try:
        program = Path("/proc/sys/kernel/modprobe").read_text().strip()
        module = "iptable_filter" if family == "ipv4" else "ip6table_filter"
        # The path is the one that the kernel itself runs for this.
        subprocess.run([program, "-q", module], check=False, capture_output=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        pass
