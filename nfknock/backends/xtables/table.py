"""One family's filter table: read whole, edited in memory, written in one atomic step.

The kernel replaces a table as a whole or not at all. Until `commit` nothing has happened; after `refresh` every edit
that was not committed is gone.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nfknock.backends.xtables import binding
from nfknock.backends.xtables.binding import Encoded
from nfknock.backends.xtables.entry import Entry
from nfknock.core.model import Family
from nfknock.errors import BackendError

# How the kernel, through libiptc, says that it does not know an extension of a rule, or not in this revision.
_LACKING = frozenset(("no chain/target/match by that name", "protocol wrong type for socket"))
_COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}


class TableChangedError(BackendError):
    """Somebody changed the table between reading and writing it."""


class NoTableError(BackendError):
    """The kernel has no such table."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Some chains, a policy, and the jumps from built-in chains, as they were."""

    chains: dict[str, tuple[Entry, ...]]
    policy: str
    jumps: dict[str, tuple[tuple[int, Entry], ...]]
    """By the chain of ours that they lead to, each with its place; -1 is the last."""


class FilterTable:
    """The filter table of one family in the network namespace of the calling thread.

    Every method raises BackendError when the kernel or libiptc refuses.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._table: Any = None
        # Reading a rule costs some microseconds; with thousands of them, reading twice what did not change is felt.
        self._known: dict[str, list[Entry]] = {}

    def refresh(self) -> None:
        """Read the table anew and forget edits. Raises NoTableError if the kernel has none."""
        self._known.clear()
        library = binding.iptc()
        kind = library.Table if self.family == "ipv4" else library.Table6
        try:
            if self._table is None:
                # The library keeps tables for the process; the cached one may be that of another namespace.
                self._table = kind("filter", autocommit=False)
            self._table.refresh()
        except library.IPTCError as exc:
            raise self._reading_error(exc) from exc

    def commit(self) -> None:
        """Write all edits in one step, then read the table back. Raises TableChangedError if another was faster."""
        with self._explained("writing"):
            self._table.commit()
        self.refresh()

    def chains(self) -> list[str]:
        """Return the names of all chains."""
        return binding.chain_names(self._table)

    def policy(self, chain: str) -> str:
        """Return a built-in chain's policy, ACCEPT or DROP."""
        policy, _counters = self._table.get_policy(chain)
        return str(policy.name)

    def entries(self, chain: str) -> list[Entry]:
        """Return a chain's rules, edits included."""
        if chain not in self._known:
            self._known[chain] = [
                Entry(self.family, ctypes.string_at(ctypes.addressof(raw), raw.next_offset), self._jump(raw))
                for raw in self._raw_entries(chain)
            ]
        return list(self._known[chain])

    def describe(self, chain: str) -> list[str]:
        """Return a chain's rules in iptables-save notation. Redirects file descriptor 1 meanwhile."""
        own = {*self.chains(), *binding.VERDICTS}
        return [binding.describe(chain, each, is_extension=each.jump not in own) for each in self.entries(chain)]

    def create_chain(self, chain: str) -> None:
        with self._explained(f"creating the chain {chain} in"):
            self._table.create_chain(chain)

    def delete_chain(self, chain: str) -> None:
        """Delete an own chain with what it holds; nothing may jump to it any more."""
        with self._explained(f"deleting the chain {chain} from", chain):
            self._table.flush_entries(chain)
            self._table.delete_chain(chain)

    def set_policy(self, chain: str, policy: str) -> None:
        with self._explained(f"setting the policy of {chain} in"):
            self._table.set_policy(chain, policy)

    def fill(self, chain: str, entries: Iterable[Entry]) -> None:
        """Make a chain hold exactly these rules."""
        with self._explained(f"filling the chain {chain} of", chain):
            self._table.flush_entries(chain)
        for entry in entries:
            self.append(chain, entry)

    def append(self, chain: str, entry: Entry) -> None:
        with self._explained(f"adding a rule to {chain} in", chain):
            self._table.append_entry(chain, _buffer(entry))

    def insert(self, chain: str, entry: Entry, position: int = 0) -> None:
        with self._explained(f"inserting a rule into {chain} of", chain):
            self._table.insert_entry(chain, _buffer(entry), position)

    def delete(self, chain: str, entry: Entry) -> None:
        """Delete the first rule that equals this one in every byte that the kernel compares."""
        mask = (ctypes.c_ubyte * len(entry.raw))(*b"\xff" * len(entry.raw))
        with self._explained(f"deleting a rule from {chain} of", chain):
            self._table.delete_entry(chain, _buffer(entry), mask)

    def set_jumps(self, chain: str, target: str, jumps: Iterable[tuple[int, Entry]]) -> None:
        """Make the jumps from `chain` to `target` exactly these, at these positions; -1 is behind everything."""
        for entry in self.entries(chain):
            if entry.jump == target:
                self.delete(chain, entry)
        for position, entry in jumps:
            if position < 0:
                self.append(chain, entry)
            else:
                self.insert(chain, entry, position)

    def jumps(self, chain: str, target: str) -> tuple[tuple[int, Entry], ...]:
        """Return the jumps from `chain` to `target` with their positions; -1 is the last."""
        entries = self.entries(chain)
        return tuple(
            (-1 if 0 < at == len(entries) - 1 else at, entry)
            for at, entry in enumerate(entries)
            if entry.jump == target
        )

    def snapshot(self, is_own: Callable[[str], bool], guarded: str, entrances: Mapping[str, str]) -> Snapshot:
        """Remember the chains that are ours, the policy of the chain `guarded`, and where built-in chains jump to ours.

        `entrances` has, for each chain of ours that a built-in one jumps to, that one.
        """
        return Snapshot(
            chains={name: tuple(self.entries(name)) for name in self.chains() if is_own(name)},
            policy=self.policy(guarded),
            jumps={target: self.jumps(chain, target) for target, chain in entrances.items()},
        )

    def restore(
        self, before: Snapshot, is_own: Callable[[str], bool], guarded: str, entrances: Mapping[str, str]
    ) -> None:
        """Edit the table so that what `snapshot` remembered is as it was; the caller commits."""
        for target, chain in entrances.items():
            self.set_jumps(chain, target, ())
        own = [name for name in self.chains() if is_own(name)]
        for name in own:
            self.fill(name, ())
        for name in own:
            if name not in before.chains:
                self.delete_chain(name)
        for name in before.chains:
            if name not in own:
                self.create_chain(name)
        for name, entries in before.chains.items():
            self.fill(name, entries)
        for target, chain in entrances.items():
            self.set_jumps(chain, target, before.jumps[target])
        self.set_policy(guarded, before.policy)

    def holds(self, chain: str, rules: list[Encoded]) -> bool:
        """Whether a chain has exactly these rules, in this order."""
        live = self.entries(chain)
        return len(live) == len(rules) and all(rule.equals(entry) for rule, entry in zip(rules, live, strict=True))

    def _raw_entries(self, chain: str) -> Iterator[Any]:
        raw = self._table.first_rule(chain)
        while raw:
            yield raw
            raw = self._table.next_rule(raw)

    def _jump(self, raw: Any) -> str:
        return (self._table.get_target(raw) or b"").decode(errors="surrogateescape")

    def _explained(self, what: str, edited: str = "") -> _Explained:
        self._known.pop(edited, None)
        return _Explained(f"{what} the {self.family} filter table")

    def _reading_error(self, exc: Exception) -> BackendError:
        reason = _reason(exc)
        command = _COMMANDS[self.family]
        if "who?" in reason or "table does not exist" in reason:
            return NoTableError(
                f"this kernel has no legacy {command} filter table; load it with `modprobe {command[:-1]}_filter`, "
                "or use a kernel that has it"
            )
        if "permission denied" in reason:
            return BackendError(f"reading the {self.family} filter table: permission denied; run this as root")
        return BackendError(f"reading the {self.family} filter table: {reason}")


class _Explained:
    """Turns the library's errors into ours, with what was tried in front."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, binding.iptc().IPTCError):
            reason = _reason(exc)
            if "resource temporarily unavailable" in reason:
                raise TableChangedError(f"{self._what}: another program changed it meanwhile") from exc
            if "too many links" in reason:
                reason = "a rule that is not nfknock's jumps there; find it with `iptables-legacy -S`, and delete it"
            if reason in _LACKING:
                reason = binding.LACKING
            raise BackendError(f"{self._what}: {reason}") from exc


def _buffer(entry: Entry) -> Any:
    """The rule as libiptc takes it: a verdict or a jump stands as a name in the target, not as the kernel's number."""
    raw = entry.with_target_name(entry.jump).raw
    return (ctypes.c_ubyte * len(raw)).from_buffer_copy(raw)


def _reason(exc: BaseException) -> str:
    """The library's message without its own beginning and without the b'…' around C strings."""
    text = str(exc)
    quoted = re.search(r"b'(.*)'|b\"(.*)\"", text)
    reason = (quoted[1] or quoted[2]).strip(" .") if quoted else text
    return reason[:1].lower() + reason[1:]
