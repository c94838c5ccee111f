"""Reads the nf_tables ruleset of this network namespace, as linux/netfilter/nf_tables.h has it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, TypeVar

from nfknock.core.plan import ADMIT_MARK, OWN_TABLE
from nfknock.host.modules import is_there
from nfknock.netlink import NETFILTER, InterruptedDumpError, ask, attribute, attributes, dump, number, text

_SUBSYSTEM = 10 << 8
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS, _GET_GENERATION = 1, 4, 7, 10, 13, 16
_RULE_TABLE, _RULE_CHAIN = 1, 2
_MESSAGE_SIZE = 4
_INET = 1
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_DORMANT = 1
_ACCEPT = 1
_ATTEMPTS = 5
# What a kernel without it answers.
_NO_NFTABLES = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)

Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]
_HOOKS: tuple[Hook, ...] = ("prerouting", "input", "forward", "output", "postrouting")

Key = tuple[int, str, str]
"""A family's number, a table's name, and that of a chain or a set."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One step of a rule, with its attributes by their numbers."""

    name: str
    content: dict[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule: what it compares, loads and decides, in that order."""

    key: Key
    expressions: tuple[Expression, ...]
    handle: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; one without a hook is there to be jumped to."""

    key: Key
    hook: Hook | None = None
    kind: str = ""
    priority: int = 0
    drops: bool = False
    """Whether its policy does."""

    def __str__(self) -> str:
        family, table, name = self.key
        return f"{_FAMILIES[family]} {table} {name}"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or a map; `verdict` is what a verdict map has for it."""

    key: bytes
    verdict: bytes = b""
    is_end: bool = False
    """Where an interval ends, in a set of those: the first key that is beyond."""
    is_rest: bool = False
    """What all those have that are in no other element."""
    key_end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Set:
    """A set's shape."""

    flags: int
    key_size: int


@dataclass(slots=True)
class Ruleset:
    """Everything in the families inet, ip and ip6 that is not dormant. Sets' elements are read when they are needed."""

    chains: dict[Key, Chain]
    rules: dict[Key, list[Rule]]
    sets: dict[Key, Set]
    _elements: dict[Key, tuple[Element, ...]] = field(default_factory=dict)

    def elements(self, key: Key) -> tuple[Element, ...]:
        """Return what is in a set. Raises OSError."""
        if key not in self._elements:
            self._elements[key] = tuple(_read_elements(key))
        return self._elements[key]


def read() -> Ruleset | None:
    """Return the ruleset, None where the kernel has no nf_tables, or nobody uses it. Raises OSError."""
    # To ask a kernel that has it as a module would load it.
    if is_there("nf_tables") is False:
        return None
    for attempt in range(_ATTEMPTS):
        try:
            return _read()
        except InterruptedDumpError:
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError as exc:
            if exc.errno in _NO_NFTABLES:
                return None
            raise
    return None


def read_own() -> Ruleset:
    """Return all chains, and the rules of nfknock's table alone: few, however many others there are. Raises OSError."""
    rules = _ask(_GET_RULE, _INET, _named(_RULE_TABLE, OWN_TABLE))
    return Ruleset(_read_chains(), _by_chain(rules), {})


def first_rule(key: Key) -> list[Rule]:
    """Return the rule that a chain begins with, if it has any, whatever becomes of the others. Raises OSError."""
    family, table, name = key
    body = _body(family, _named(_RULE_TABLE, table) + _named(_RULE_CHAIN, name))
    return list(islice(_each(_rule, _answers(ask(NETFILTER, _SUBSYSTEM | _GET_RULE, body))), 1))


def generation() -> int:
    """Return the number that the kernel counts up with every change of the ruleset. Raises OSError."""
    for answer in ask(NETFILTER, _SUBSYSTEM | _GET_GENERATION, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0), flags=0):
        return number(dict(attributes(answer, _MESSAGE_SIZE)).get(1, b""))
    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))


def _read() -> Ruleset | None:
    chains = _read_chains()
    rules, sets = _ask(_GET_RULE), _ask(_GET_SET)
    # Each list is told by itself: a reload in between would give us the chains of one ruleset and the rules of another.
    # The generation would tell, too, but it goes up with every element, as with bans, and nothing could be read there.
    if chains != _read_chains():
        raise InterruptedDumpError(errno.EINTR, "changed meanwhile")
    return Ruleset(chains, _by_chain(rules), dict(_each(_set, sets))) if chains else None


def _read_chains() -> dict[Key, Chain]:
    asleep = {
        (family, text(content.get(1, b"")))
        for family, content in _ask(_GET_TABLE)
        if number(content.get(2, b"")) & _DORMANT
    }
    return {chain.key: chain for chain in _each(_chain, _ask(_GET_CHAIN)) if chain.key[:2] not in asleep}


def _by_chain(answers: Iterable[_Answer]) -> dict[Key, list[Rule]]:
    rules: dict[Key, list[Rule]] = {}
    for rule in _each(_rule, answers):
        rules.setdefault(rule.key, []).append(rule)
    return rules


_Answer = tuple[int, dict[int, bytes]]
_Part = TypeVar("_Part")


def _each(parse: Callable[[_Answer], _Part], answers: Iterable[_Answer]) -> Iterator[_Part]:
    """Parse every answer. Raises OSError where one lacks what it has to have: a ruleset that is half read is none."""
    for answer in answers:
        try:
            part = parse(answer)
        except KeyError as exc:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from exc
        yield part


def _ask(kind: int, family: int = socket.AF_UNSPEC, question: bytes = b"") -> Iterator[_Answer]:
    return _answers(dump(NETFILTER, _SUBSYSTEM | kind, _body(family, question)))


def _body(family: int, question: bytes) -> bytes:
    return struct.pack("=BBH", family, 0, 0) + question


def _named(kind: int, name: str) -> bytes:
    return attribute(kind, name.encode() + b"\0")


def _answers(bodies: Iterable[bytes]) -> Iterator[_Answer]:
    for answer in bodies:
        if len(answer) >= _MESSAGE_SIZE and answer[0] in _FAMILIES:
            yield answer[0], dict(attributes(answer, _MESSAGE_SIZE))


def _key(answer: _Answer, table: int, name: int) -> Key:
    family, content = answer
    return family, text(content[table]), text(content[name])


def _chain(answer: _Answer) -> Chain:
    content = answer[1]
    key = _key(answer, 1, 3)
    if 4 not in content:
        return Chain(key=key)
    hook = dict(attributes(content[4]))
    place = number(hook[1])
    return Chain(
        key=key,
        hook=_HOOKS[place] if place < len(_HOOKS) else None,
        kind=text(content.get(7, b"")),
        priority=int.from_bytes(hook[2], signed=True),
        drops=number(content.get(5, b"\1")) == 0,
    )


def _rule(answer: _Answer) -> Rule:
    listed = (dict(attributes(each)) for _kind, each in attributes(answer[1].get(4, b"")))
    return Rule(
        key=_key(answer, 1, 2),
        expressions=tuple(Expression(text(each[1]), dict(attributes(each.get(2, b"")))) for each in listed),
        handle=number(answer[1].get(3, b"")),
        comment=_comment(answer[1].get(7, b"")),
    )


def _comment(userdata: bytes) -> str:
    """Return what nft keeps there as the rule's comment: type 0, length, text."""
    at = 0
    while at + 2 <= len(userdata):
        kind, size = userdata[at], userdata[at + 1]
        if kind == 0:
            return text(userdata[at + 2 : at + 2 + size])
        at += 2 + size
    return ""


def _set(answer: _Answer) -> tuple[Key, Set]:
    content = answer[1]
    return _key(answer, 1, 2), Set(flags=number(content.get(3, b"")), key_size=number(content.get(5, b"")))


def _read_elements(key: Key) -> Iterator[Element]:
    family, table, name = key
    for _family, content in _ask(_GET_ELEMENTS, family, _named(1, table) + _named(2, name)):
        for _kind, each in attributes(content.get(3, b"")):
            yield _element(dict(attributes(each)))


def _element(content: dict[int, bytes]) -> Element:
    flags = number(content.get(3, b""))
    end = content.get(10)
    return Element(
        key=value(content.get(1, b"")),
        verdict=content.get(2, b""),
        is_end=bool(flags & 1),
        is_rest=bool(flags & 2),
        key_end=None if end is None else value(end),
    )


def value(content: bytes) -> bytes:
    """Return the bytes of a value (NFTA_DATA_VALUE)."""
    return dict(attributes(content)).get(1, b"")


def verdict(content: bytes) -> tuple[int, str] | None:
    """Return a verdict's code and the chain that it leads to (NFTA_DATA_VERDICT)."""
    inner = dict(attributes(content)).get(2)
    if inner is None:
        return None
    fields = dict(attributes(inner))
    code = fields.get(1)
    return None if code is None else (int.from_bytes(code, signed=True), text(fields.get(2, b"")))


def read_foreign() -> Ruleset | None:
    """Return the ruleset without nfknock's part, None where there is no other. Raises OSError."""
    ruleset = read()
    others = foreign(ruleset) if ruleset else None
    return others if others and others.chains else None


def foreign(ruleset: Ruleset) -> Ruleset:
    """Return the ruleset as it would be without nfknock: its table, and its rules in the chains of others."""
    return Ruleset(
        {key: chain for key, chain in ruleset.chains.items() if not is_own(key)},
        {key: [rule for rule in rules if not is_entrance(rule)] for key, rules in ruleset.rules.items()},
        ruleset.sets,
    )


def is_own(key: Key) -> bool:
    """Whether a chain is in nfknock's own table."""
    return key[:2] == (_INET, OWN_TABLE)


def is_entrance(rule: Rule) -> bool:
    """Whether a rule is nfknock's in a chain of others: it accepts what bears the mark.

    Its comment may be gone, as iptables-restore rewrites the rule.
    """
    if is_own(rule.key):
        return False
    compared = [value(each.content.get(3, b"")) for each in rule.expressions if each.name == "cmp"]
    is_about_ours = any(ADMIT_MARK in (int.from_bytes(each, "little"), int.from_bytes(each)) for each in compared)
    verdicts = [verdict(each.content.get(2, b"")) for each in rule.expressions if each.name == "immediate"]
    return is_about_ours and (_ACCEPT, "") in verdicts
