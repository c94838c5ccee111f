"""A backend that keeps its state in memory and behaves, and fails, like the real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nfknock.backends import Change, FirewallState, Strange
from nfknock.core.model import Hole, IPAddress, Opening
from nfknock.core.plan import Plan
from nfknock.errors import BackendError

_Key = tuple[str, IPAddress]


class FakeBackend:
    """Holes in a dictionary. Passes the same contract suite as the backends that write to a kernel."""

    name = "fake"
    shares_with: frozenset[str] = frozenset()

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._plan: Plan | None = None
        self._holes: dict[tuple[str, IPAddress], Hole] = {}
        self.failure: BackendError | None = None

    def probe(self) -> list[str]:
        self._fail()
        return []

    def stands(self) -> bool:
        return self._plan is not None

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        self._fail()
        changed = plan != self._plan
        if not dry_run:
            self._plan = plan
            self._holes.update({hole.key: hole for hole in holes})
            self._guard()
        return Change(changed=changed, difference=("+ a plan",) if changed and dry_run else ())

    def remove(self) -> Change:
        self._fail()
        changed, self._plan, self._holes = self._plan is not None, None, {}
        return Change(changed=changed)

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        self._fail()
        if self._plan is None:
            raise BackendError("the firewall is not in place; run `nfknock apply` first")
        standing = {}
        holes = list(holes)
        for hole in holes:
            if self._guarded((hole.key, hole))[1] != hole:
                raise BackendError("the firewall does not guard that yet; run `nfknock apply` first")
        for hole in holes:
            older = self._holes.get(hole.key)
            renewed = older is not None and not older.is_expired(self._clock())
            self._holes[hole.key] = standing[hole.key] = hole.renewed(older) if renewed and older else hole
        return list(standing.values())

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        self._fail()
        return [self._holes.pop(key) for key in set(holes) if key in self._holes]

    def sweep(self) -> list[Hole]:
        now = self._clock()
        return self.close([key for key, hole in self._holes.items() if hole.is_expired(now)])

    def holes(self) -> list[Hole]:
        self._fail()
        return list(self._holes.values())

    def state(self, plan: Plan | None = None) -> FirewallState:  # noqa: ARG002  (it has one plan or none)
        self._fail()
        policy = "ACCEPT" if self._plan is None else "DROP"
        damage = () if self._plan is not None else ("there is no plan",)
        return FirewallState(policy={"ipv4": policy, "ipv6": policy}, damage=damage)

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        self._fail()
        if self._plan is not None:
            return []
        self._plan = plan
        now = self._clock()
        missing = [hole for hole in holes if hole.key not in self._holes and not hole.is_expired(now)]
        self._holes.update({hole.key: hole for hole in missing})
        return missing

    def remember(self) -> Callable[[], None]:
        plan = self._plan

        def take_back() -> None:
            self._plan = plan
            self._guard()

        return take_back

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> tuple[list[Strange], list[Hole]]:
        self._fail()
        gone = []
        for key, hole in list(self._holes.items()):
            opens = tuple(each for each in hole.opens if each in doors.get(hole.door, ()))
            if opens == hole.opens:
                continue
            gone.append(Strange(hole=hole, reason="no door opens it"))
            self._holes[key] = replace(hole, opens=opens)
            if not opens:
                del self._holes[key]
        return gone, self.holes()

    def _guard(self) -> None:
        self._holes = {key: hole for key, hole in map(self._guarded, self._holes.items()) if hole.opens}

    def _guarded(self, item: tuple[_Key, Hole]) -> tuple[_Key, Hole]:
        """Return a hole with those of its openings that the plan knows."""
        key, hole = item
        guarded = self._plan.forwarded if self._plan else ()
        return key, replace(hole, opens=tuple(each for each in hole.opens if each.to is None or each in guarded))

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
