"""What the host's nf_tables ruleset does with a packet that nfknock would let in.

An accept in one base chain is no accept in another, and none in legacy x_tables; a drop in any of them is a drop. What
is understood is what `nft`, ufw, firewalld and the nft variant of `iptables` write. Everything else may match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nfknock.host.extensions import PASSING, REFUSING, Match
from nfknock.host.nftread import Chain, Element, Expression, Key, Rule, Ruleset, Set, value, verdict
from nfknock.host.probe import Answer, Field, Probe, every, negate, some
from nfknock.host.registers import Registers, conntrack, fib, meta, payload, swapped
from nfknock.host.walk import Kind, Step, Walk
from nfknock.netlink import number, text

Fate = Literal["drops", "may drop"]

_FAMILIES = {4: (1, 2), 6: (1, 10)}
_INTERVAL, _MAP, _CONCATENATED = 4, 8, 0x80
_OBJECTS_THAT_DECIDE = (2, 4)
"""Quotas and limits; counters and the like decide nothing."""
_VERDICTS: dict[int, Kind] = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_CONTINUES = (-1, -2)
_IDLE = frozenset(("counter", "last", "log", "notrack", "dup"))
_LIMIT_OVER = 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a base chain does with a packet; `certain` or not is its fate."""

    chain: Chain
    fate: Fate


def judge(ruleset: Ruleset, probe: Probe, *, last_priority: int | None = None) -> Iterator[Judgement]:
    """Yield every base chain on the packet's way that drops it, or may; up to a priority, if one is given.

    Raises OSError.
    """
    hook = "input" if probe.behind is None else "forward"
    for chain in ruleset.chains.values():
        if chain.hook != hook or chain.key[0] not in _FAMILIES[probe.version]:
            continue
        if last_priority is not None and chain.priority > last_priority:
            continue
        if _ends(ruleset, chain, probe) == {"drop"}:
            yield Judgement(chain, "drops")
        # Whom an administrator has banned is none of our business, as long as others get in.
        elif "drop" in _ends(ruleset, chain, replace(probe, is_anybody=True)):
            yield Judgement(chain, "may drop")


def _ends(ruleset: Ruleset, chain: Chain, probe: Probe) -> frozenset[Kind]:
    policy: Kind = "drop" if chain.drops else "accept"
    ends = Walk(ruleset.rules, lambda rule: _Evaluation(ruleset, probe, rule).steps()).ends(chain.key)
    return frozenset(policy if end == "return" else end for end in ends)


class _Evaluation:
    """One rule, one packet."""

    def __init__(self, ruleset: Ruleset, probe: Probe, rule: Rule) -> None:
        self._ruleset = ruleset
        self._probe = probe
        self._rule = rule
        self._registers = Registers()
        self._answer: Answer = True

    def steps(self) -> Iterator[Step[Key]]:
        """Yield what the rule does, if it does anything to the packet."""
        for expression in self._rule.expressions:
            try:
                found = list(self._decide(expression))
                answer = True if found else self._compare(expression)
            except (KeyError, ValueError, OverflowError):
                # A later kernel's, in another shape: it may decide anything. No ruleset may keep `apply` from working.
                self._registers.forget()
                found, answer = list(self._either()), None
            yield from found
            self._answer = every(self._answer, answer)
            if self._answer is False:
                return

    def _decide(self, expression: Expression) -> Iterator[Step[Key]]:
        """Yield the verdicts of an expression that has any."""
        content = expression.content
        match expression.name:
            case "immediate" if (found := verdict(content[2])) is not None:
                yield from self._step(found, is_certain=True)
            case "lookup" if 3 in content and number(content[3]) == 0:
                yield from self._look_up_verdict(content)
            case "reject":
                yield Step("drop", is_certain=bool(self._answer))
            case "target" if (name := text(content[1])) not in PASSING:
                yield from self._either(is_refused=name in REFUSING)
            case "queue" | "synproxy":
                yield from self._either()

    def _either(self, *, is_refused: bool = False) -> Iterator[Step[Key]]:
        """Yield what somebody else decides, or a target that is not known."""
        yield Step("drop", is_certain=is_refused and bool(self._answer))
        if not is_refused:
            yield Step("accept", is_certain=False)

    def _step(self, found: tuple[int, str], *, is_certain: bool) -> Iterator[Step[Key]]:
        code, chain = found
        if code in _CONTINUES:
            return
        key = (*self._rule.key[:2], chain) if chain else None
        kind = _VERDICTS.get(code if code < 0 else code & 0xFF)
        if kind is None:
            yield from self._either()
        else:
            yield Step(kind, key, is_certain=is_certain and bool(self._answer))

    def _look_up_verdict(self, content: dict[int, bytes]) -> Iterator[Step[Key]]:
        for element, answer in self._look_up(content):
            found = verdict(element.verdict)
            if answer is not False and found:
                yield from self._step(found, is_certain=bool(answer))

    def _compare(self, expression: Expression) -> Answer:
        """Return whether the rule goes on after an expression, and keep what it loads."""
        content, registers = expression.content, self._registers
        match expression.name:
            case "cmp":
                wanted = value(content[3])
                return compare(registers.load(number(content[1]), len(wanted)), number(content[2]), wanted)
            case "range":
                low, high = value(content[3]), value(content[4])
                inside = registers.load(number(content[1]), len(low)).is_between(low, high)
                return negate(inside) if number(content[2]) else inside
            case "lookup":
                found = some(*(answer for _element, answer in self._look_up(content)))
                if 3 in content:
                    registers.forget()
                return negate(found) if number(content.get(5, b"")) & 1 else found
            case "match":
                return Match(text(content[1]), number(content.get(2, b"")), content.get(3, b"")).answer(self._probe)
            case "limit" if number(content.get(5, b"")) & _LIMIT_OVER and self._probe.is_anybody:
                return False
            case "objref" if number(content.get(1, b"")) not in (0, *_OBJECTS_THAT_DECIDE):
                return True
            case _:
                return self._load(expression)

    def _load(self, expression: Expression) -> Answer:
        content, probe = expression.content, self._probe
        numbers = {key: number(each) for key, each in content.items() if len(each) <= 4}
        loaded: Field
        match expression.name:
            case "meta" if 1 in content:
                loaded = meta(numbers[2], probe)
            case "ct" if 1 in content:
                loaded = conntrack(numbers[2])
            case "payload" if 1 in content:
                loaded = payload(numbers[2], numbers[3], numbers[4], probe)
            case "fib" if 1 in content:
                loaded = fib(numbers[2], numbers.get(3, 0), probe)
            case "immediate" if numbers[1]:
                loaded = Field.of(value(content[2]))
            case "meta" | "ct" | "payload" | "immediate":
                return True  # it writes into the packet, or says "continue"
            case _:
                return self._transform(expression, numbers)
        self._registers.store(numbers[1], loaded)
        return True

    def _transform(self, expression: Expression, numbers: dict[int, int]) -> Answer:
        content, registers = expression.content, self._registers
        match expression.name:
            case "bitwise" if 4 in content and not numbers.get(6):
                source = registers.load(numbers[1], numbers[3])
                registers.store(numbers[2], source.masked(value(content[4]), value(content[5])))
            case "byteorder":
                registers.store(numbers[2], swapped(registers.load(numbers[1], numbers[4]), numbers[5]))
            case name if name in _IDLE:
                pass
            case _:
                registers.forget()
                return None
        return True

    def _look_up(self, content: dict[int, bytes]) -> Iterator[tuple[Element, Answer]]:
        """Yield a set's elements, each with whether it is the one."""
        key: Key = (*self._rule.key[:2], text(content[1]))
        shape = self._ruleset.sets[key]
        wanted = self._registers.load(number(content[2]), shape.key_size)
        rest: list[Element] = []
        answers: list[Answer] = []
        for element, answer in _members(self._ruleset.elements(key), shape, wanted):
            if element.is_rest:
                rest.append(element)
            else:
                answers.append(answer)
                yield element, answer
        for element in rest:
            yield element, negate(some(*answers))


def _members(elements: tuple[Element, ...], shape: Set, wanted: Field) -> Iterator[tuple[Element, Answer]]:
    if not shape.flags & _INTERVAL or shape.flags & _CONCATENATED:
        for element in elements:
            yield element, None if element.is_rest else _is_element(element, wanted)
        return
    last = b"\xff" * shape.key_size
    ordered = sorted((each for each in elements if not each.is_rest), key=lambda each: (each.key, not each.is_end))
    for index, element in enumerate(ordered):
        if not element.is_end:
            end = next((each.key for each in ordered[index + 1 :] if each.is_end), None)
            high = last if end is None else (int.from_bytes(end) - 1).to_bytes(shape.key_size)
            yield element, wanted.is_between(element.key, high)
    yield from ((element, None) for element in elements if element.is_rest)


def _is_element(element: Element, wanted: Field) -> Answer:
    if element.key_end is None or element.key_end == element.key:
        return wanted.equals(element.key)
    # Word by word: right for ports and for everything that is a prefix, which is what intervals are written of.
    return every(
        *(
            wanted.part(at, 4).is_between(element.key[at : at + 4], element.key_end[at : at + 4])
            for at in range(0, len(element.key), 4)
        )
    )


def compare(field: Field, operation: int, wanted: bytes) -> Answer:
    """Return what `cmp` comes to: equal, not equal, less, at most, greater, at least, by their numbers."""
    nothing, everything = bytes(len(wanted)), b"\xff" * len(wanted)
    match operation:
        case 0:
            return field.equals(wanted)
        case 1:
            return negate(field.equals(wanted))
        case 2:
            return every(field.is_between(nothing, wanted), negate(field.equals(wanted)))
        case 3:
            return field.is_between(nothing, wanted)
        case 4:
            return every(field.is_between(wanted, everything), negate(field.equals(wanted)))
        case 5:
            return field.is_between(wanted, everything)
        case _:
            return None
