"""Reads and writes the sets that hold holes, and takes back what was written if the rest cannot be.

A set holds at most so many entries and lets none in for longer than the kernel counts; an entry that it has already
is written over. Whoever writes holds the xtables lock: the kernel's sets have none, and their readers need none.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from nfknock import netlink
from nfknock.backends.ipset.entry import ADT, NESTED, Entry, read_entries, read_members, write_entry
from nfknock.backends.ipset.explained import NoTypeError, explained, reading
from nfknock.core.model import Family, IPAddress
from nfknock.errors import BackendError, MissingDependencyError

# linux/netfilter/ipset/ip_set.h; what stands in a set's head has other numbers than what stands in an entry.
_SUBSYSTEM, _LIST, _ADD, _DELETE = 6, 7, 9, 10
_REQUEST, _ACKNOWLEDGED, _EXCLUSIVE = 1, 4, 0x200
_PROTOCOL, _SETNAME, _TYPENAME, _FLAGS, _DATA, _LINE = 1, 2, 3, 6, 7, 9
_SIZE, _REFERENCES = 19, 25
_HEADS_ONLY = struct.pack("!I", 1 << 2)
_PROTOCOL_VERSION = b"\x06"
_REFERENCED, _EXISTS = 4100, 4103
# For a list that is to have a set that is not there; of a set the same number says that it is full.
_NO_MEMBER = 4352

# The length of an attribute has 16 bits, and so has that of the list of entries.
_AT_ONCE = 200

_FAMILIES: dict[Family, int] = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_LIST_TYPE = "list:set"
# Lists and, behind a hyphen, doors' sets: what else begins like this is somebody else's.
_OWN = {
    _LIST_TYPE: re.compile("nfknock[46]f?"),
    "hash:ip,port": re.compile("nfknock[46]-[^!]+"),
    "hash:ip,port,ip": re.compile("nfknock[46]f-[^!]+"),
}
# What a set is exchanged for to have another size. One that is found was left there by somebody who was killed.
_SPARE = {
    "hash:ip,port": re.compile("nfknock[46]-.+!"),
    "hash:ip,port,ip": re.compile("nfknock[46]f-.+!"),
}
# How many doors a list has room for; the kernel allows 65536.
_LIST_SIZE = 4096
# What is added without a timeout, by hand, is not to stay for ever.
_DEFAULT_TIMEOUT = 60


@dataclass(frozen=True, slots=True)
class Head:
    """What a set is: its type, how many entries it takes, and how many rules and lists look at it."""

    type: str
    size: int
    references: int


class Sets:
    """The kernel's sets in the network namespace of the calling thread. Every method raises BackendError."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._socket: Any = None
        self._closing: ExitStack | None = None
        self.used: set[str] = set()
        """The sets that were written to, or had something, when they were read: if one is gone, somebody did that."""
        self._known: dict[str, set[IPAddress]] = {}
        """For sets that were read, or made, here: the sources that they may have. Only ever a hint."""
        self.stand_ins: dict[str, str] = {}
        """In a rehearsal, what stands for lists that are not there."""
        self._undo: list[Callable[[], object]] = []
        self._rehearsed: list[str] | None = None

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Keep one socket meanwhile for all that is written, if anything is. Whoever writes does it in here."""
        if self._closing is not None:
            yield
            return
        with ExitStack() as closing:
            self._closing = closing
            try:
                yield
            finally:
                self._closing = self._socket = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Take back what is written meanwhile if anything goes wrong."""
        with self.reaching():
            try:
                yield
            except BaseException:
                self.take_back(0)
                raise
            finally:
                self._undo.clear()

    @contextmanager
    def rehearsing(self) -> Iterator[list[str]]:
        """Write nothing meanwhile; give the lines, in `ipset save` notation, that say what would be written."""
        lines: list[str] = []
        self._rehearsed = lines
        with self.reaching():
            try:
                yield lines
            finally:
                self._rehearsed = None
                for name in self.stand_ins.values():
                    self._destroy(name)
                self.stand_ins.clear()

    def mark(self) -> int:
        """Return a place to take back to."""
        return len(self._undo)

    def take_back(self, mark: int) -> None:
        """Undo what was written since `mark`, the last of it first."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def heads(self) -> dict[str, Head]:
        """Return every set of ours. A kernel without sets has none."""
        return self._heads(_OWN)

    def _heads(self, names: dict[str, re.Pattern[str]]) -> dict[str, Head]:
        """Return the sets whose type and name these are."""
        found = {}
        try:
            for answer in self._ask(netlink.attribute(_FLAGS, _HEADS_ONLY)):
                head = dict(netlink.attributes(answer, 4))
                name = netlink.text(head.get(_SETNAME, b""))
                kind = netlink.text(head.get(_TYPENAME, b""))
                if kind in names and names[kind].fullmatch(name):
                    data = dict(netlink.attributes(head.get(_DATA, b"")))
                    size, references = (netlink.number(data.get(each, b"")) for each in (_SIZE, _REFERENCES))
                    found[name] = Head(kind, size, references)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOENT):
                return {}
            raise reading("the sets", exc) from exc
        return found

    def members(self, name: str) -> list[str]:
        """Return the sets in a list, somebody else's too; none if there is no such list."""
        return [member for answer in self._named(name) for member in read_members(answer)]

    def entries(self, name: str, sources: Collection[IPAddress] | None = None) -> list[Entry | None]:
        """Return what a set has, for some sources alone if they are given; nothing if there is no such set."""
        packed = None if sources is None else {source.packed for source in sources}
        found = [entry for answer in self._named(name) for entry in read_entries(answer, packed)]
        if any(found):
            self.used.add(name)
        if sources is None:
            self._known[name] = {entry.source for entry in found if entry}
        return found

    def may_have(self, name: str, source: IPAddress) -> bool:
        """Whether a set has to be read to know what it has for a source."""
        return name not in self._known or source in self._known[name]

    def forget(self) -> None:
        """Read every set anew before it is written."""
        self._known.clear()

    def ensure_list(self, name: str) -> None:
        """Have a list of sets. In a rehearsal another one stands for it: no rule can be built without any."""
        if self._rehearsed is not None:
            if name in self.heads():
                return
            self._rehearsed.append(f"+ create {name} {_LIST_TYPE}")
            # Of a name that nobody looks for: no other process is to meet it.
            self.stand_ins[name] = name = f"nfk-{os.getpid()}-{name[7:]}"
        with explained(f"making the set {name}"):
            # Of no family: rules of IPv6 look at nothing that is called IPv4, as the library would have it.
            self._open().create(name, _LIST_TYPE, family=socket.AF_UNSPEC, exclusive=False, size=_LIST_SIZE)

    def ensure(self, name: str, family: Family, kind: str, listed: str) -> None:
        """Have a set that a list looks at."""
        if self._rehearsed is not None:
            return
        # Whatever is known of it: somebody may have taken it out of the list, or destroyed it.
        if name not in self._known or not self.join(listed, name):
            if self._create(name, family, kind, self.size):
                self._known[name] = set()
            elif name not in self.heads():
                # In the list, one of another type would let its members in to every port.
                raise BackendError(f"making the set {name}: somebody else has one of that name; rename or destroy it")
            self.join(listed, name)
        self.used.add(name)

    def join(self, listed: str, name: str) -> bool:
        """Have a list look at a set; False if there is no such set."""
        if self._rehearsed is not None:
            self._rehearsed.append(f"+ add {listed} {name}")
            return True
        with explained(f"putting the set {name} into {listed}", gone=(_NO_MEMBER,)) as attempt:
            self._open().add(listed, name, etype="set", exclusive=False)
        return attempt.is_done

    def add(self, name: str, entries: Sequence[Entry], *, older: Iterable[Entry] = (), exclusive: bool = False) -> bool:
        """Write entries, over those `older` ones that stand; if they have to be new, return False where one is not."""
        if self._rehearsed is not None:
            self._rehearsed += [f"+ {_line(name, entry)}" for entry in entries]
            return True
        if name in self._known:
            self._known[name].update(entry.source for entry in entries)
        if exclusive:
            return all(self._add_one(name, entry) for entry in entries)
        overwritten = tuple(older)
        # Before they are written: of many, some may be when it fails.
        self._undo.append(lambda: self._put_back(name, entries, overwritten))
        self._add(name, entries)
        return True

    def take(self, name: str, entries: Sequence[Entry]) -> None:
        """Take entries out; one that is gone is no error."""
        if self._rehearsed is not None:
            self._rehearsed += [f"- {_line(name, entry)}" for entry in entries]
            return
        self._undo.append(lambda: self._add(name, entries))
        self._take(name, entries)

    def resize(self, name: str, family: Family, kind: str) -> None:
        """Have a set take as many entries as sets are to, with all that it has."""
        if self._rehearsed is not None:
            self._rehearsed.append(f"+ create {name} maxelem {self.size}")
            return
        other = f"{name[:30]}!"
        self._destroy_spare(other)
        with explained(f"making room in the set {name}"):
            self._create(other, family, kind, self.size)
        try:
            self._add(other, [entry for entry in self.entries(name) if entry])
            with explained(f"making room in the set {name}"):
                self._open().swap(name, other)
        finally:
            self._destroy(other)

    def collect(self, keep: Collection[str] = ()) -> bool:
        """Destroy the sets that no rule leads to, but for those to `keep`; False if there is none."""
        before = self.heads()
        for name in self._heads(_SPARE):
            self._destroy_spare(name)
        for name, head in before.items():
            if head.type == _LIST_TYPE and not head.references and name not in keep:
                self._destroy(name)
        after = self.heads()
        for name, head in after.items():
            if head.type != _LIST_TYPE and not head.references and name not in keep:
                self.destroy(name)
        return any(not head.references for head in (*before.values(), *after.values()))

    def destroy(self, name: str, listed: str | None = None) -> None:
        """Destroy a set, and take it out of a list before that. One that somebody reads meanwhile stays."""
        if self._rehearsed is not None:
            self._rehearsed.append(f"- create {name}")
            return
        if listed:
            self.leave(listed, name)
        self._destroy(name)

    def leave(self, listed: str, name: str) -> None:
        """Have a list look at a set no more."""
        if self._rehearsed is not None:
            self._rehearsed.append(f"- add {listed} {name}")
            return
        with explained(f"taking the set {name} out of {listed}", gone=(errno.ENOENT, _EXISTS, _NO_MEMBER)):
            self._open().delete(listed, name, etype="set")

    def supports(self, kind: str) -> bool:
        """Whether the kernel has a type of sets."""
        try:
            with explained(f"asking for sets of type {kind}"):
                self._open().get_supported_revisions(kind)
        except NoTypeError:
            return False
        return True

    def _create(self, name: str, family: Family, kind: str, size: int) -> bool:
        """Make a set; False if there is one of that name."""
        with explained(f"making the set {name}", gone=(errno.EEXIST,)) as attempt:
            self._open().create(
                name,
                kind,
                family=_FAMILIES[family],
                timeout=_DEFAULT_TIMEOUT,
                counters=True,
                comment=True,
                maxelem=size,
            )
        return attempt.is_done

    def _add_one(self, name: str, entry: Entry) -> bool:
        """Write an entry; False if there is one already."""
        with explained(f"adding to the set {name}", gone=(_EXISTS,)) as attempt:
            self._tell(_ADD, name, [entry], flags=_EXCLUSIVE)
            self._undo.append(lambda: self._take(name, [entry]))
        return attempt.is_done

    def _add(self, name: str, entries: Sequence[Entry]) -> None:
        with explained(f"adding to the set {name}"):
            self._tell(_ADD, name, entries)

    def _take(self, name: str, entries: Sequence[Entry]) -> None:
        with explained(f"taking out of the set {name}", gone=(_EXISTS, errno.ENOENT)):
            self._tell(_DELETE, name, entries)

    def _put_back(self, name: str, entries: Sequence[Entry], older: Sequence[Entry]) -> None:
        self._take(name, entries)
        self._add(name, older)

    def _tell(self, command: int, name: str, entries: Sequence[Entry], flags: int = 0) -> None:
        """Have the kernel add or delete entries, in as few messages as they fit in."""
        reached = self._open()
        for first in range(0, len(entries), _AT_ONCE):
            message = _message_class()()
            message["nfgen_family"] = socket.AF_INET
            message["attrs"] = [
                ("PROTOCOL", _PROTOCOL_VERSION[0]),
                ("SETNAME", name),
                ("LINE", 0),
                ("ENTRIES", b"".join(map(write_entry, entries[first : first + _AT_ONCE]))),
            ]
            for _answer in reached.nlm_request(message, _SUBSYSTEM << 8 | command, _REQUEST | _ACKNOWLEDGED | flags):
                pass

    def _destroy(self, name: str) -> None:
        self._known.pop(name, None)
        self.used.discard(name)
        with explained(f"destroying the set {name}", gone=(errno.ENOENT, _REFERENCED)):
            self._open().destroy(name)

    def _destroy_spare(self, name: str) -> None:
        # Versions before this one took it for a door's, and put it into the list.
        self.destroy(name, name.partition("-")[0])

    def _named(self, name: str) -> Iterator[bytes]:
        try:
            yield from self._ask(netlink.attribute(_SETNAME, name.encode() + b"\0"))
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise reading(f"the set {name}", exc) from exc

    def _ask(self, attribute: bytes) -> Iterator[bytes]:
        body = bytes(4) + netlink.attribute(_PROTOCOL, _PROTOCOL_VERSION) + attribute
        return netlink.ask(netlink.NETFILTER, _SUBSYSTEM << 8 | _LIST, body)

    def _open(self) -> Any:
        """Return the socket that is written to; made when it is first needed."""
        assert self._closing is not None  # somebody is `reaching`, and will close it
        if self._socket is None:
            try:
                from pyroute2 import IPSet
            except ImportError:
                raise MissingDependencyError("pyroute2") from None
            with explained("reaching the kernel's sets"):
                self._socket = self._closing.enter_context(IPSet())
        return self._socket


@cache
def _message_class() -> Any:
    """Return a message to the kernel's sets that has a list of entries as bytes; pyroute2's own has them as objects."""
    from pyroute2.netlink.nfnetlink import nfgen_msg

    kinds = (
        (_PROTOCOL, "PROTOCOL", "uint8"),
        (_SETNAME, "SETNAME", "asciiz"),
        (ADT | NESTED, "ENTRIES", "cdata"),
        (_LINE, "LINE", "be32"),
    )
    return type("_Message", (nfgen_msg,), {"nla_map": kinds})


def _line(name: str, entry: Entry) -> str:
    """Return an entry in `ipset save` notation."""
    return f'add {name} {entry} timeout {entry.timeout} comment "{entry.comment}"'
