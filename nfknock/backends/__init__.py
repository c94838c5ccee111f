"""Who writes the firewall. One file (or package) a backend, a few verbs each, one contract suite for all of them.

To add one: implement `Backend`, name it in `make_backend` and in `config.sections.Firewall`, and add it to the
contract suite (tests/kernel/test_backend_contract.py). CONTRIBUTING.md walks through it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from nfknock.core.model import Family, Hole, IPAddress, Opening
from nfknock.core.plan import BackendChoice, Plan
from nfknock.errors import NfknockError

NAMES = ("iptables", "ipset", "nftables")
DEFAULT = "iptables"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What `apply` or `remove` did, or would do.

    `difference` is in the backend's own notation, `-` and `+`; `warnings` are lines for the administrator; `replaced`
    are the backends that this one took over from.
    """

    changed: bool
    difference: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallState:
    """Each family's policy for incoming packets (None: no such family here), and what is wrong with nfknock's part."""

    policy: dict[Family, str | None]
    damage: tuple[str, ...] = ()
    """What somebody did to it, or that it is not there; empty if it stands."""
    by: str = ""
    """The backend that put it in place, where that is another than the one that was asked."""

    @property
    def applied(self) -> bool:
        """Whether nfknock's part stands."""
        return not self.damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Strange:
    """A rule among the holes that had no place there and was taken out; `hole` is what it seemed to be, if anything."""

    hole: Hole | None
    reason: str

    def __str__(self) -> str:
        return f"{self.hole.source}: {self.hole.door}: closed: {self.reason}" if self.hole else self.reason


class Backend(Protocol):
    """The verbs. Every one raises BackendError, and then the firewall is as it was.

    Not thread-safe: one thread owns a backend from its first call on.
    """

    name: str
    shares_with: frozenset[str]
    """Those that stand in the same tables: `apply` moves their holes by itself, as they are when it writes."""

    def probe(self) -> list[str]:
        """Find out whether this host can do it; return warnings, one line each."""

    def stands(self) -> bool:
        """Whether anything that this backend put in is in the firewall, damaged or not."""

    def apply(self, plan: Plan, *, holes: Iterable[Hole] = (), dry_run: bool = False) -> Change:
        """Bring the firewall to what the plan says, all families or none; holes stay.

        `holes` are open from the same moment on: those that another backend had open before this one took over.
        """

    def remove(self) -> Change:
        """Take out everything that `apply` and `open` put in and restore the policy that `apply` found."""

    def open(self, holes: Iterable[Hole]) -> list[Hole]:
        """Let sources in, until each hole's end; return the holes as they stand.

        One that stands already keeps its opening time and gets the later end. One that has to wait until it can be
        written begins, and ends, so much later.
        """

    def close(self, holes: Iterable[tuple[str, IPAddress]]) -> list[Hole]:
        """Shut these (door, source) pairs; return those that stood. One that is gone is no error."""

    def sweep(self) -> list[Hole]:
        """Take away the holes whose time is over; return them. The kernel has shut them already."""

    def holes(self) -> list[Hole]:
        """Return every hole that stands in the firewall, expired ones that nobody has swept yet included."""

    def state(self, plan: Plan | None = None) -> FirewallState:
        """Look whether what `apply` put in stands; every rule of it, if it was this plan."""

    def repair(self, plan: Plan, holes: Iterable[Hole]) -> list[Hole]:
        """Put back what somebody damaged, these holes with it where they are missing; return those that were."""

    def remember(self) -> Callable[[], None]:
        """Remember nfknock's part as it is now; what is returned takes everything but holes back to that."""

    def clear_out(self, doors: Mapping[str, frozenset[Opening]]) -> tuple[list[Strange], list[Hole]]:
        """Shut what is no hole of these doors (name and what it opens), or was edited.

        Returns what that was, and what is left, as `holes` does: reading thousands of them once is enough.
        """


def make_backend(choice: BackendChoice) -> Backend:
    """Return the backend that the configuration asks for, ready to take over from any other.

    "auto" is the one that stands in the firewall, else the default one. Raises NfknockError where it cannot work here.
    """
    from nfknock.backends.succession import Succession

    name = choice.name
    if name == "auto":
        name = next((each.name for each in _others(choice) if each.stands()), DEFAULT)
    return Succession(_make(replace(choice, name=name)), lambda: _others(replace(choice, name=name)))


def _make(choice: BackendChoice) -> Backend:
    match choice.name:
        case "iptables" | "ipset":
            from nfknock.backends.iptables import IptablesBackend

            return IptablesBackend(choice=choice)
        case "nftables":
            from nfknock.backends.nftables import NftablesBackend

            return NftablesBackend(choice=choice)
        case _:
            raise ValueError(f"there is no backend {choice.name!r}")


def _others(choice: BackendChoice) -> list[Backend]:
    """Return every backend but the chosen one that can work here, and so may be standing."""
    made = []
    for name in NAMES:
        if name != choice.name and (name == "nftables" or _has_legacy_filter()):
            with contextlib.suppress(NfknockError):
                made.append(_make(replace(choice, name=name)))
    return made


def _has_legacy_filter() -> bool:
    """Whether there is a legacy filter table; to look into it with python-iptables would make one."""
    from nfknock.host import legacy

    versions: tuple[legacy.Version, ...] = (4, 6)
    try:
        return any("filter" in (legacy.tables(version) or ()) for version in versions)
    except OSError:
        return True
