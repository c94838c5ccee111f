"""The verbs of the backends iptables and ipset, which differ in what a hole is stored as and in nothing else."""

from __future__ import annotations

import difflib
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nfknock.backends import Change, FirewallState, Strange, forwarding, tracking
from nfknock.backends.ipset.kernel import Sets
from nfknock.backends.iptables import edits, limit, transaction
from nfknock.backends.iptables.edits import Wanted
from nfknock.backends.iptables.layout import ENTRANCES, FOUND, INPUT, is_own
from nfknock.backends.iptables.rules import RuleStore
from nfknock.backends.iptables.sets import SetStore
from nfknock.backends.iptables.store import Key, Store, has_rules_of_holes, looks_at_sets
from nfknock.backends.xtables import binding
from nfknock.backends.xtables.table import FilterTable, NoTableError
from nfknock.core.model import Family, Hole, IPAddress, Opening, family_of
from nfknock.core.plan import BackendChoice, Plan
from nfknock.errors import BackendError

# What a write takes when nobody is in its way, in seconds.
_MOMENT = 0.1


class IptablesBackend:
    """Writes legacy iptables in-process, and sets. See `nfknock.backends.Backend` for the verbs.

    Whichever of both it is, it knows what the other one leaves, so that one commit moves all holes.
    """

    shares_with = frozenset({"iptables", "ipset"})

    def __init__(self, clock: Callable[[], float] = time.time, choice: BackendChoice | None = None) -> None:
        # First of all, so that what is missing is said before anything else is found wrong.
        binding.iptc()
        choice = choice or BackendChoice()
        self.name = choice.name
        self._clock = clock
        self._sets = Sets(choice.set_size)
        self._stores: tuple[Store, ...] = (RuleStore(), SetStore(self._sets, clock))
        self._store = next(store for store in self._stores if store.name == choice.name)
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
            self._store.probe(table.family)
        if "ipv6" not in self._tables:
            return ["IPv6 is switched off in this kernel: IPv4 alone is guarded"]
        return []

    def stands(self) -> bool:
        for table in self._tables.values():
            table.refresh()
        tables = self._tables.values()
        if any(looks_at_sets(table) for table in tables):
            return self.name == "ipset"
        # Sets that nothing looks at are ipset's, and holes that are rules are the other's, as amid a move. Chains that
        # nobody uses, or that have no hole, are what a flush has left, and where there are sets too, they were ipset's.
        has_sets = bool(self._sets.heads())
        if self.name == "ipset":
            return has_sets
        if has_sets:
            return any(edits.is_entered(table) and has_rules_of_holes(table) for table in tables)
        return any(is_own(chain) for table in tables for chain in table.chains())

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        if plan.knocks_a_second:
            self._check_limit()
        wanted = {family: Wanted.of(plan, family) for family in self._tables}
        brought = tuple(holes)

        def edit(table: FilterTable) -> bool:
            own = [hole for hole in brought if family_of(hole.source) == table.family]
            return self._bring_to(table, wanted[table.family], own)

        idle = tuple(forwarding.idle(opening.to for opening in plan.forwarded if opening.to))
        if dry_run:
            return replace(self._compare(wanted, edit), warnings=(*idle, *self._unseen(plan)))
        if self.state().applied or self._is_the_others():
            return replace(self._change(edit), warnings=(*idle, *self._unseen(plan)))
        known, first = tracking.adopt(frozenset())
        change = self._change(edit)
        # Once more, for those that were begun meanwhile: what they lost is sent again.
        _known, second = tracking.adopt(known)
        return replace(change, warnings=(*(first or second), *self._bleak(), *idle, *self._unseen(plan)))

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
            standing[table.family] = edits.dig(table, self._store, own, now)
            return self._writes_tables

        transaction.change(self._tables_of(hole.source for hole in wanted), edit, self._store.writing)
        return [hole for some in standing.values() for hole in some]

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        keys = frozenset(holes)
        return self._close(lambda _part: True, self._tables_of(source for _door, source in keys), keys)

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
            if self._store.is_in(table):
                found += self._store.holes(table)
        return found

    def state(self, plan: Plan | None = None) -> FirewallState:
        policy: dict[Family, str | None] = {"ipv4": None, "ipv6": None}
        damage: list[str] = []
        for family, table in self._tables.items():
            table.refresh()
            policy[family] = table.policy(INPUT)
            damage += edits.damage(table, Wanted.of(plan, family) if plan else None, self._store)
        return FirewallState(policy=policy, damage=tuple(damage))

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        live = [hole for hole in holes if not hole.is_expired(self._clock())]
        wanted = {family: Wanted.of(plan, family) for family in self._tables}
        missing: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            if not edits.damage(table, wanted[table.family], self._store):
                return False
            own = [hole for hole in live if family_of(hole.source) == table.family]
            missing[table.family] = edits.put_back(table, wanted[table.family], self._store, own, self._clock())
            return True

        self._change(edit)
        return [hole for some in missing.values() for hole in some]

    def remember(self) -> Callable[[], None]:
        before = {}
        for family, table in self._tables.items():
            table.refresh()
            store = next((each for each in self._stores if each.is_in(table)), None)
            before[family] = (table.snapshot(is_own, INPUT, ENTRANCES), store)

        def edit(table: FilterTable) -> bool:
            edits.take_back(table, *before[table.family], self._stores, self._clock())
            return True

        def take_back() -> None:
            self._change(edit)

        return take_back

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> tuple[list[Strange], list[Hole]]:
        gone: dict[Family, list[Strange]] = {}
        left: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            found = self._store.clear_out(table, doors) if self._store.is_in(table) else ([], [])
            gone[table.family], left[table.family] = found
            return bool(gone[table.family])

        transaction.change(list(self._tables.values()), edit, self._store.writing)
        return [each for some in gone.values() for each in some], [hole for some in left.values() for hole in some]

    def _check_limit(self) -> None:
        if not all(binding.knows_match(family, limit.NAME, limit.REVISION) for family in self._tables):
            raise BackendError(
                "this kernel has no x_tables extension hashlimit, by which knocks are limited by source; "
                "say knocks_a_second = 0 under [guard], or load xt_hashlimit"
            )

    def _bleak(self) -> tuple[str, ...]:
        """Warn of what `remove` will put back, where that shuts the host off."""
        return tuple(
            f"{family}: INPUT had policy DROP and no rule; `nfknock remove` will restore just that"
            for family, table in self._tables.items()
            if FOUND["DROP"] in table.chains() and edits.is_bare(table)
        )

    def _unseen(self, plan: Plan) -> tuple[str, ...]:
        """Warn of what keeps strays from being seen."""
        return tuple(
            f"{family}: INPUT has a rule of its own that takes everything, so port scans are not seen; "
            "INPUT's policy drops what nobody takes, and that rule can go"
            for family, table in self._tables.items()
            if plan.strays and edits.hides_strays(table)
        )

    def _tables_of(self, sources: Iterable[IPAddress]) -> list[FilterTable]:
        families = {family_of(source) for source in sources}
        if families - set(self._tables):
            raise BackendError("IPv6 is switched off in this kernel; nothing can be opened for an IPv6 address")
        return [table for family, table in self._tables.items() if family in families]

    @property
    def _writes_tables(self) -> bool:
        """Whether a hole is a change of the tables."""
        return self.name == "iptables"

    def _close(
        self, is_meant: Callable[[Hole], bool], tables: list[FilterTable], keys: frozenset[Key] | None = None
    ) -> list[Hole]:
        closed: dict[Family, list[Hole]] = {}

        def edit(table: FilterTable) -> bool:
            closed[table.family] = self._store.fill_in(table, is_meant, keys)
            return self._writes_tables and bool(closed[table.family])

        transaction.change(tables, edit, self._store.writing)
        return [hole for some in closed.values() for hole in some]

    def _bring_to(self, table: FilterTable, wanted: Wanted, brought: list[Hole]) -> bool:
        """Edit a table, and move what the other store has; False if everything was so already."""
        now = self._clock()
        # Read under the lock, so it is what stands: it comes before what somebody has read earlier.
        found = [
            hole
            for other in self._stores
            if other is not self._store and other.is_in(table)
            for hole in other.holes(table)
        ]
        is_changed = edits.bring_to(table, wanted, self._store)
        moved: dict[Key, Hole] = {}
        for hole in (*brought, *found):
            opens = tuple(opening for opening in hole.opens if wanted.guards(opening))
            if opens and not hole.is_expired(now):
                moved[hole.key] = replace(hole, opens=opens)
        self._store.dig(table, moved, now)
        return is_changed or bool(moved)

    def _is_the_others(self) -> bool:
        """Whether the same chains stand by the other store: what is tracked is tracked."""
        return any(
            other.is_in(table) and not edits.damage(table, None, other)
            for other in self._stores
            for table in self._tables.values()
        )

    def _change(self, edit: transaction.Edit) -> Change:
        is_collected = False

        @contextmanager
        def writing() -> Iterator[None]:
            nonlocal is_collected
            with self._sets.reaching():
                before = self._sets.heads()
                try:
                    with self._sets.writing():
                        yield
                except BaseException:
                    # No rule looks at them after all.
                    self._sets.collect(keep=before.keys())
                    raise
                is_collected = self._sets.collect()

        changed = transaction.change(list(self._tables.values()), edit, writing)
        return Change(changed=changed or is_collected)

    def _compare(self, wanted: dict[Family, Wanted], edit: transaction.Edit) -> Change:
        """Make the edits in memory alone and say what they would change."""
        lines: list[str] = []
        with self._sets.rehearsing() as written:
            for table in self._tables.values():
                table.refresh()
                entrances = edits.entrances(table, wanted[table.family])
                before = edits.saved(table, entrances)
                edit(table)
                after = edits.saved(table, entrances)
                table.refresh()
                for name, other in self._sets.stand_ins.items():
                    after = [line.replace(other, name) for line in after]
                changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
                lines += [f"# {table.family}", *changed] if changed else []
        lines += ["# sets", *written] if written else []
        return Change(changed=bool(lines), difference=tuple(lines))


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all. If it does, its table must be guarded too, or nothing is."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _load_module(family: Family) -> None:
    """Load the table's kernel module; what comes of it shows when the table is read again."""
    try:
        program = Path("/proc/sys/kernel/modprobe").read_text().strip()
        module = "iptable_filter" if family == "ipv4" else "ip6table_filter"
        # The path is the one that the kernel itself runs for this.
        subprocess.run([program, "-q", module], check=False, capture_output=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        pass
