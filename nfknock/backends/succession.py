"""One backend in the place of another: the configured one, and whatever another left standing.

As long as nobody changes `backend` this adds nothing to the configured one. When somebody did, `apply` puts the new
one's part in, with everything that is open, and only then takes the old one's out: a packet has to pass both in
between, and what is established, allowed or open passes each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from nfknock.backends import Backend, Change, FirewallState, Strange
from nfknock.backends.forwarding import guarded
from nfknock.core.model import Hole, IPAddress, Opening
from nfknock.core.plan import Plan
from nfknock.errors import BackendError, BusyError

_Key = tuple[str, IPAddress]


class Succession:
    """A backend, and those that it may find in its place. See `nfknock.backends.Backend` for the verbs."""

    def __init__(self, chosen: Backend, others: Callable[[], Sequence[Backend]]) -> None:
        """`others` makes the other backends that this host can have; it is called when there may be one."""
        self.name = chosen.name
        self.shares_with = chosen.shares_with
        self._chosen = chosen
        self._others = others

    def probe(self) -> list[str]:
        return self._chosen.probe()

    def stands(self) -> bool:
        return self._chosen.stands() or bool(self._predecessors())

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        predecessors = self._predecessors()
        if not predecessors:
            return self._chosen.apply(plan, holes=holes, dry_run=dry_run)
        before = self._not_shared(predecessors)
        brought = [*holes, *guarded(before.values(), plan)]
        if dry_run:
            change = self._chosen.apply(plan, holes=brought, dry_run=True)
            gone = (f"# nfknock's part by the backend {each.name} is taken out" for each in predecessors)
            return replace(change, changed=True, difference=(*change.difference, *gone))
        take_back = self._chosen.remember()
        try:
            change = self._chosen.apply(plan, holes=brought)
            # A daemon that wrote by the old one went on doing so.
            self._follow(before, self._not_shared(predecessors), plan)
            # One that shares its chains with the chosen one is gone by now.
            gone_changes = [each.remove() for each in predecessors if each.stands()]
        except BackendError:
            # Where both stay a packet has to pass both, and a knock opens one of them.
            take_back()
            raise
        warnings = (warning for each in gone_changes for warning in each.warnings)
        replaced = tuple(each.name for each in predecessors)
        return replace(change, changed=True, warnings=(*change.warnings, *warnings), replaced=replaced)

    def remove(self) -> Change:
        changes = [self._chosen.remove()]
        # One that shares its chains with the chosen one is gone by now.
        changes += [each.remove() for each in self._predecessors()]
        return Change(
            changed=any(change.changed for change in changes),
            warnings=tuple(warning for change in changes for warning in change.warnings),
        )

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        return self._chosen.open(holes)

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        keys = tuple(holes)
        return _distinct([each.close(keys) for each in self._standing()])

    def sweep(self) -> list[Hole]:
        return self._chosen.sweep()

    def holes(self) -> list[Hole]:
        return _distinct([each.holes() for each in self._standing()])

    def state(self, plan: Plan | None = None) -> FirewallState:
        state = self._chosen.state(plan)
        if state.applied:
            return state
        # What another backend put in place is no damage of ours, and nothing that a daemon could repair.
        by = ", ".join(each.name for each in self._predecessors())
        return replace(state, damage=(f"it was put in place by the backend {by}",), by=by) if by else state

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        if by := self.state(plan).by:
            raise BackendError(
                f"the firewall is in place by the backend {by} and not by {self.name}; run `nfknock apply`"
            )
        return self._chosen.repair(plan, holes)

    def remember(self) -> Callable[[], None]:
        stood = self._standing()
        if stood == [self._chosen]:
            return self._chosen.remember()
        remembered = [each.remember() for each in (*stood, *([] if self._chosen in stood else [self._chosen]))]

        # Outside, as the second attempt finds no more what the first has taken out.
        now: dict[_Key, Hole] = {}

        def take_back() -> None:
            if not now:
                now.update({hole.key: hole for hole in self.holes()})
            for restore in remembered:
                restore()
            for each in stood:
                # What was opened and shut meanwhile is as open and as shut here.
                standing = {hole.key for hole in each.holes()}
                each.close(standing - now.keys())
                _open_known(each, [hole for key, hole in now.items() if key not in standing])

        return take_back

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> tuple[list[Strange], list[Hole]]:
        return self._chosen.clear_out(doors)

    def _not_shared(self, predecessors: Sequence[Backend]) -> dict[_Key, Hole]:
        """Return the holes in tables that the chosen one does not write."""
        return {hole.key: hole for each in predecessors if each.name not in self.shares_with for hole in each.holes()}

    def _follow(self, before: Mapping[_Key, Hole], now: Mapping[_Key, Hole], plan: Plan) -> None:
        """Do in the chosen one what was done to these holes since it was given them."""
        shut = [key for key, hole in before.items() if key not in now or now[key].opened_at != hole.opened_at]
        if shut:
            self._chosen.close(shut)
        if changed := [hole for key, hole in now.items() if not _is_same(hole, before.get(key))]:
            self._chosen.open(guarded(changed, plan))

    def _standing(self) -> list[Backend]:
        """Return those whose holes count: the chosen one, unless another one stands in its place."""
        if self._chosen.stands():
            return [self._chosen]
        return [*self._predecessors()] or [self._chosen]

    def _predecessors(self) -> list[Backend]:
        return [each for each in self._others() if each.stands()]


def _open_known(backend: Backend, holes: Sequence[Hole]) -> None:
    """Open these holes; of one that leads to what this backend does not guard, as much as leads here."""
    try:
        backend.open(holes)
    except BusyError:
        raise
    except BackendError:
        if len(holes) > 1:
            for hole in holes:
                _open_known(backend, [hole])
            return
        here = [replace(hole, opens=tuple(each for each in hole.opens if each.to is None)) for hole in holes]
        if here == list(holes):
            raise
        backend.open(hole for hole in here if hole.opens)


def _is_same(hole: Hole, other: Hole | None) -> bool:
    """Whether nothing but counters differs."""
    return other is not None and replace(hole, packets=other.packets, bytes=other.bytes) == other


def _distinct(holes: Sequence[list[Hole]]) -> list[Hole]:
    """Return each backend's holes; one that two of them have, amid a move, is one."""
    if len(holes) == 1:
        return holes[0]
    return list({hole.key: hole for some in holes for hole in some}.values())
