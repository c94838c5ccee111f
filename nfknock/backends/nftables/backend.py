"""Writes nf_tables: the rules by libnftables when something is applied, holes by netlink when somebody knocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from nfknock.backends import Change, FirewallState, Strange, forwarding, tracking
from nfknock.backends.nftables import elements, layout, library, room, script, standing
from nfknock.backends.nftables.elements import Name
from nfknock.backends.nftables.fit import Fit, generation
from nfknock.backends.nftables.layout import PLACE, Stand
from nfknock.backends.nftables.standing import PROBE, Found
from nfknock.core.model import Hole, IPAddress, Opening
from nfknock.core.plan import BackendChoice, Plan
from nfknock.errors import BackendError
from nfknock.host import nftread

_ATTEMPTS = 3
_LAID_AT_ONCE = 50
_UNSEEN = "scans are not seen where the host's own chain drops: this kernel's nf_tables cannot look for services"
_CHANGED_MEANWHILE = "writing holes by nf_tables: somebody else changes the same sets"
_NOT_IN_PLACE = "the firewall is not in place; run `nfknock apply` first"


class NftablesBackend:
    """Writes nf_tables in-process. See `nfknock.backends.Backend` for the verbs."""

    name = "nftables"
    shares_with: frozenset[str] = frozenset()

    def __init__(self, clock: Callable[[], float] = time.time, choice: BackendChoice | None = None) -> None:
        library.load()
        self._clock = clock
        self._choice = choice or BackendChoice(name="nftables")
        self._fit = Fit(self._choice.attach)
        self._ways: dict[str, set[Opening]] = {}
        """What the holes of each door were seen to open: where one is looked for without reading whole sets."""

    def probe(self) -> list[str]:
        # Who may not even read is told so by us: the library tells the terminal.
        standing.read()
        name = Name("probe", 4, is_behind=False)
        standing.rehearse(f"add set {PROBE} s {{ type {name.type}; flags timeout; counter; }}")
        return []

    def stands(self) -> bool:
        found = standing.read()
        return found.is_there or any(True for _ in found.all_entrances())

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        found = standing.read()
        stand = standing.fitting(found, plan, self._choice.attach)
        warnings = tuple(_remarks(found, plan, stand))
        if plan.reader == "nfqueue":
            self._check_queue()
        if plan.knocks_a_second:
            _check_limit()
        is_due = bool(standing.damage(found, plan)) or found.digest != layout.digest(plan, stand)
        brought = tuple(holes)
        size = self._choice.set_size
        misfits = room.misfits(size) if found.is_there else {}
        changed = is_due or bool(brought) or bool(misfits)
        if dry_run:
            rules = script.difference(found, plan, stand) if is_due else ()
            sets = (f"# the set {name} has room for {size} elements instead of {has}" for name, has in misfits.items())
            return Change(changed=changed, difference=(*rules, *sets), warnings=warnings)
        if not found.is_there:
            warnings = (*self._bring_up_anew(found, plan, stand, brought), *warnings)
        elif is_due:
            self._rewrite(lambda sets: script.bring_up(found, plan, stand, sets))
        if is_due:
            self._fit.forget()
        self._retire(set(plan.forwarded).__contains__)
        # Before holes are brought, which may need that room.
        warnings = (*room.resize(size, self._clock()), *warnings)
        if found.is_there:
            self.open(brought)
        return Change(changed=changed, warnings=warnings)

    def _bring_up_anew(self, found: Found, plan: Plan, stand: Stand, holes: tuple[Hole, ...]) -> tuple[str, ...]:
        """Put everything in where nothing of ours stands; return what tracking warns of."""
        known, first = tracking.adopt(frozenset())
        if left := elements.names():
            # Nobody was let in by what they hold. Where another process put rules here meanwhile this is refused.
            library.run("\n".join(f"delete set {PLACE} {name}" for name in left))
        try:
            # Before there is a rule that looks at them, so that they are open from the first packet on.
            self._lay(holes)
            self._rewrite(lambda sets: script.bring_up(found, plan, stand, sets))
        except BaseException:
            if elements.names() and not standing.read().is_there:
                library.run(f"delete table {PLACE}")
            raise
        # Once more, for those that were begun meanwhile: what they lost is sent again.
        return first or tracking.adopt(frozenset(known))[1]

    def _lay(self, holes: Iterable[Hole]) -> None:
        """Write holes into new sets; some at a time, as an ordinary user's socket has no room for thousands."""
        now = self._clock()
        due = list({hole.key: hole for hole in holes if not hole.is_expired(now)}.values())
        names = sorted({Name.of(hole, opening) for hole in due for opening in hole.opens}, key=str)
        if names:
            sets = (script.add_set(name, self._choice.set_size) for name in names)
            library.run("\n".join((f"add table {PLACE}", *sets)))
        for at in range(0, len(due), _LAID_AT_ONCE):
            some = due[at : at + _LAID_AT_ONCE]
            try:
                elements.write((), some, now)
            except (FileNotFoundError, FileExistsError) as exc:
                raise BackendError(_CHANGED_MEANWHILE) from exc
            self._know(some)

    def remove(self) -> Change:
        found = standing.read()
        commands = [*script.delete_entrances(found, ())]
        if found.is_there or elements.names():
            commands.append(f"delete table {PLACE}")
        if commands:
            library.run("\n".join(commands))
        self._ways.clear()
        return Change(changed=bool(commands))

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        wanted = {hole.key: hole for hole in holes}
        if not wanted:
            return []
        for attempt in range(_ATTEMPTS):
            try:
                return self._open(list(wanted.values()))
            except (FileNotFoundError, FileExistsError):
                # A set that is not there yet, an element whose time was over just now, or one that somebody put there.
                if attempt == _ATTEMPTS - 1:
                    break
                names = {Name.of(hole, opening) for hole in wanted.values() for opening in hole.opens}
                self._make_sets(names)
                for name in names:
                    elements.take_out_others(name)
        raise BackendError(_CHANGED_MEANWHILE)

    def _open(self, holes: list[Hole]) -> list[Hole]:
        self._check_guarded({opening for hole in holes for opening in hole.opens if opening.to})
        now = self._clock()
        gone: list[Hole] = []
        new: list[Hole] = []
        for hole in holes:
            ways = {*hole.opens, *self._ways.get(hole.door, ())}
            parts = [
                part for way in ways if way.is_for(hole.source) and (part := _find(hole.door, hole.source, way, now))
            ]
            for older in elements.joined(part for part in parts if not part.is_expired(now)):
                hole = hole.renewed(older)  # noqa: PLW2901
            gone += parts
            new.append(hole)
        elements.write(gone, new, now)
        self._know(new)
        return new

    def _know(self, holes: Iterable[Hole]) -> None:
        for hole in holes:
            self._ways.setdefault(hole.door, set()).update(hole.opens)

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        keys = set(holes)
        unknown = {door for door, _source in keys} - self._ways.keys()
        if unknown:
            self.holes()
        return self._take_out(self._parts(keys, self._clock()))

    def _parts(self, keys: Iterable[tuple[str, IPAddress]], now: float) -> list[Hole]:
        return [
            part
            for door, source in keys
            for way in self._ways.get(door, ())
            if way.is_for(source) and (part := _find(door, source, way, now))
        ]

    def _take_out(self, parts: list[Hole]) -> list[Hole]:
        try:
            elements.write(parts, (), self._clock())
        except FileNotFoundError:
            # Some were over meanwhile; those that are not are taken out one by one.
            for part in parts:
                try:
                    elements.write([part], (), self._clock())
                except FileNotFoundError:
                    continue
        return elements.joined(parts)

    def sweep(self) -> list[Hole]:
        # The kernel takes away what is over; what a clock that was set leaves is closed by whoever counts.
        now = self._clock()
        over = [hole.key for hole in self.holes() if hole.is_expired(now)]
        # Looked at again: what another process renewed meanwhile stays.
        return self._take_out([part for part in self._parts(over, now) if part.is_expired(now)])

    def holes(self) -> list[Hole]:
        now = self._clock()
        parts = [part for name in elements.names() for part in elements.read(name, now)]
        self._know(parts)
        return elements.joined(parts)

    def state(self, plan: Plan | None = None) -> FirewallState:
        # Before, so that a change in between is looked at the next time.
        number = generation()
        found = standing.read()
        stand = standing.standing(found)
        damage = standing.damage(found, plan)
        if plan and not damage:
            damage = self._fit.misfits(found, plan, number)
        elif plan and (why := standing.why_not_attached(found, self._choice.attach)):
            damage.append(f"{why}, so nfknock stands without it")
        return FirewallState(policy=dict(standing.policies(found, stand)), damage=tuple(damage))

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        self.apply(plan)
        # Not before: where nothing of ours is left but sets, they go.
        known = {hole.key for hole in self.holes()}
        now = self._clock()
        missing = (hole for hole in holes if hole.key not in known and not hole.is_expired(now))
        return self.open(forwarding.guarded(missing, plan))

    def remember(self) -> Callable[[], None]:
        past = script.Past(standing.read())

        def take_back() -> None:
            if past.is_empty:
                self.remove()
            else:
                self._rewrite(lambda sets: past.bring_back(standing.read(), sets))
                self._retire(past.guards)

        return take_back

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> tuple[list[Strange], list[Hole]]:
        left: list[Hole] = []
        strange: dict[str, list[Hole]] = {}
        others: list[Name] = []
        for name in elements.names():
            taken_out, parts = elements.take_out_others(name, self._clock())
            others += [name] if taken_out else []
            for part in parts:
                if part.door not in doors:
                    strange.setdefault("there is no such door any more", []).append(part)
                elif not doors[part.door].issuperset(part.opens):
                    strange.setdefault("the door does not open that any more", []).append(part)
                else:
                    left.append(part)
        self._take_out([part for parts in strange.values() for part in parts])
        self._delete_sets(name for name in elements.names() if name.door not in doors)
        self._know(left)
        gone = [Strange(hole=None, reason=f"what was in {name} and is no hole was taken out") for name in others]
        gone += [Strange(hole=hole, reason=why) for why, parts in strange.items() for hole in elements.joined(parts)]
        return gone, elements.joined(left)

    def _check_queue(self) -> None:
        try:
            standing.rehearse(f"add chain {PROBE} c", f"add rule {PROBE} c queue num 0")
        except BackendError as exc:
            raise BackendError(
                'nf_tables of this kernel cannot send packets to NFQUEUE; say kind = "nflog" under [reader]'
            ) from exc

    def _check_guarded(self, behind: set[Opening]) -> None:
        found = _read_own()
        if standing.damage(found, None):
            raise BackendError(_NOT_IN_PLACE)
        if behind:
            guarded = {rule.comment for rule in found.rules(layout.FORWARDED)}
            for opening in sorted(behind, key=str):
                if layout.guard_comment(opening) not in guarded:
                    raise BackendError(f"the firewall does not guard {opening} yet; run `nfknock apply` first")

    def _rewrite(self, commands: Callable[[frozenset[Name]], str]) -> None:
        """Write rules for all sets of holes, those that another process made meanwhile included."""
        sets = frozenset(elements.names())
        library.run(commands(sets))
        late = frozenset(elements.names()) - sets
        if late and (missing := script.take_in(standing.read(), late)):
            library.run("\n".join(missing))

    def _make_sets(self, names: set[Name]) -> None:
        """Make the sets of doors that are opened for the first time, and the rules that look at them."""
        found = _read_own()
        there = set(elements.names())
        commands = []
        for name in sorted(names - there, key=str):
            if found.chain(script.chain_of(name)) is None:
                raise BackendError(_NOT_IN_PLACE)
            commands += script.make_set(name, self._choice.set_size)
        if commands:
            library.run("\n".join(commands))

    def _retire(self, is_guarded: Callable[[Opening], bool]) -> None:
        """Shut what leads to hosts behind whose ports are guarded no more."""
        behind = [name for name in elements.names() if name.is_behind]
        now = self._clock()
        parts = [part for name in behind for part in elements.read(name, now)]
        self._take_out([part for part in parts if not all(map(is_guarded, part.opens))])

    def _delete_sets(self, names: Iterable[Name]) -> None:
        found = standing.read()
        commands = [command for name in names for command in script.delete_set(found, name)]
        if commands:
            library.run("\n".join(commands))


def _remarks(found: Found, plan: Plan, stand: Stand) -> Iterator[str]:
    """Say what will not work, and how what will does."""
    yield from forwarding.idle(opening.to for opening in plan.forwarded if opening.to)
    if plan.strays and len(stand.shut) < 2 and not stand.finds_services:
        yield _UNSEEN
    for place in stand.entrances:
        yield f"what is let in passes {place} by a rule that is put there first"
    for port in standing.hidden(found, plan, stand):
        yield (
            f"{port} is shut to whoever has not knocked, though the host's own rules let somebody in; who is to get in "
            "all the same stands under `allow`"
        )


def _read_own() -> Found:
    """Read what is ours: a hole does not wait for a big ruleset to hold still. Raises BackendError."""
    try:
        ruleset = nftread.read_own()
        found = Found(ruleset)
        entered = set(found.entrances)
        ruleset.rules |= {
            key: nftread.first_rule(key) for key, chain in ruleset.chains.items() if str(chain) in entered
        }
    except OSError as exc:
        raise library.unreadable("the nf_tables ruleset", exc) from exc
    return found


def _check_limit() -> None:
    rule = f"add rule {PROBE} c update @s {{ ip saddr limit rate over 1/second }} drop"
    try:
        standing.rehearse(
            f"add set {PROBE} s {{ type ipv4_addr; flags dynamic,timeout; }}", f"add chain {PROBE} c", rule
        )
    except BackendError as exc:
        raise BackendError(
            "nf_tables of this kernel cannot limit knocks by source; say knocks_a_second = 0 under [guard]"
        ) from exc


def _find(door: str, source: IPAddress, way: Opening, now: float) -> Hole | None:
    return elements.find(Name(door, source.version, way.to is not None), source, way, now)
