"""A packet's way through chains: every end that it may come to.

Where it is not known whether a rule matches, both ways are gone. So one end means that it is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Kind = Literal["accept", "drop", "return", "jump", "goto"]
_Name = TypeVar("_Name", bound=Hashable)
_Rule = TypeVar("_Rule")
_NO_CHAIN = 64


@dataclass(frozen=True, slots=True)
class Step(Generic[_Name]):
    """What a rule does with the packet if it matches; `is_certain` says whether it does."""

    kind: Kind
    chain: _Name | None = None
    is_certain: bool = True


class Walk(Generic[_Name, _Rule]):
    """Chains, and what their rules do with one packet: `steps` says that of a rule, the alternatives in any order."""

    def __init__(
        self, chains: Mapping[_Name, Sequence[_Rule]], steps: Callable[[_Rule], Iterable[Step[_Name]]]
    ) -> None:
        self._chains = chains
        self._steps = steps
        self._ends: dict[_Name, frozenset[Kind]] = {}

    def ends(self, chain: _Name, depth: int = 0) -> frozenset[Kind]:
        """Return how the packet may leave a chain: accepted, dropped, or at its end (return)."""
        if chain not in self._ends:
            # The kernel refuses loops and chains as deep as this; whoever sees one looked while it was changed.
            self._ends[chain] = self._follow(chain, depth) if depth < _NO_CHAIN else frozenset(("return",))
        return self._ends[chain]

    def _follow(self, chain: _Name, depth: int) -> frozenset[Kind]:
        found: set[Kind] = set()
        for rule in self._chains.get(chain, ()):
            for step in self._steps(rule):
                ends, goes_on = self._take(step, depth)
                found |= ends
                if step.is_certain and not goes_on:
                    return frozenset(found)
        return frozenset(found | {"return"})

    def _take(self, step: Step[_Name], depth: int) -> tuple[frozenset[Kind], bool]:
        """Return where a step leads, and whether the next rule may be come to after it."""
        if step.kind not in ("jump", "goto") or step.chain is None:
            return frozenset((step.kind,)), False
        ends = self.ends(step.chain, depth + 1)
        if step.kind == "goto":
            return ends, False
        return ends - {"return"}, "return" in ends
