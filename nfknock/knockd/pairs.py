"""Two doors of knockd that open and close the same become one door with a closing sequence.

They are matched by what their commands do, never by their names alone: in the wild a [CLOSE_…] opens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from nfknock.core.model import end_alike
from nfknock.knockd.doors import Draft
from nfknock.knockd.report import Report

_VERBS = re.compile(r"open|close|start|stop|enable|disable|allow|deny|grant|revoke|add|del|lock|unlock|on|off")


def pair(doors: Sequence[Draft], report: Report) -> list[Draft]:
    """Return the doors with each closing door put into the one that it closes, where that is one for certain."""
    closed_by = _match([door for door in doors if door.deed == "opens"], [d for d in doors if d.deed == "closes"])
    paired = {closer.name for closer in closed_by.values()}
    kept: list[Draft] = []
    for door in doors:
        if door.name in paired:
            continue
        if closer := closed_by.get(door.name):
            kept.append(_join(door, closer, report))
        elif door.deed == "closes":
            openers = [each for each in doors if _undoes(door, each)]
            kept.append(replace(door, deed="other", why_commands=_why_alone(door, openers, closed_by)))
        else:
            kept.append(door)
    return kept


def _match(openers: Sequence[Draft], closers: Sequence[Draft]) -> dict[str, Draft]:
    """Return the closing door of each opening door's name; the surest pairs are made first."""
    found: dict[str, Draft] = {}
    rounds: tuple[Callable[[Draft, Draft], bool], ...] = (
        lambda opener, closer: _is_reverse(opener, closer) and _is_alike(opener, closer),
        _is_reverse,
        _is_alike,
        lambda _opener, _closer: True,
    )
    taken: set[str] = set()
    for fits in rounds:
        pairs = [
            (opener, closer)
            for opener in openers
            for closer in closers
            if not taken & {opener.name, closer.name} and _can_join(opener, closer) and fits(opener, closer)
        ]
        claims = Counter(door.name for each in pairs for door in each)
        for opener, closer in pairs:
            if claims[opener.name] == claims[closer.name] == 1:
                found[opener.name] = closer
                taken |= {opener.name, closer.name}
    return found


def _undoes(closer: Draft, opener: Draft) -> bool:
    return (
        opener.deed == "opens"
        and closer.action is not None
        and opener.action is not None
        and closer.action.undoes(opener.action)
    )


def _can_join(opener: Draft, closer: Draft) -> bool:
    return _undoes(closer, opener) and not closer.one_time and not end_alike(opener.sequence, closer.sequence)


def _is_reverse(opener: Draft, closer: Draft) -> bool:
    return opener.sequence == closer.sequence[::-1]


def _is_alike(opener: Draft, closer: Draft) -> bool:
    one, other = (re.sub(r"[^a-z0-9]", "", _VERBS.sub("", door.section.name.lower())) for door in (opener, closer))
    return one == other


def _why_alone(closer: Draft, openers: Sequence[Draft], closed_by: dict[str, Draft]) -> str:
    """Say why a closing door stays a door of its own."""
    if not openers:
        return "it closes, and no door opens the same"
    if closer.one_time:
        return "it closes, and a close_sequence cannot come from a file"
    names = " and ".join(f"doors.{door.name}" for door in openers[:3])
    if all(end_alike(opener.sequence, closer.sequence) for opener in openers):
        why = f"its sequence ends as that of {names} does, so the last knock would open and close at once"
    elif len(openers) == 1 and openers[0].name in closed_by:
        why = f"{names} has another closing sequence already"
    else:
        why = f"which of {names} it closes is not certain"
    return f"{why}; it does not close the hole of nfknock, `nfknock close` does"


def _join(opener: Draft, closer: Draft, report: Report) -> Draft:
    title = f"doors.{opener.name}"
    section = closer.section
    report.add(section.line, "changed", f"[{section.name}] becomes the close_sequence of {title}")
    for command in closer.commands.values():
        report.add(command.line, "changed", f"{command.key}: closing is what the close_sequence of {title} does")
        report.extend(command.line, "changed", command.action.remarks)
    for key, mine, theirs in (
        ("seq_timeout", closer.seq_timeout, opener.seq_timeout),
        ("tcpflags", closer.tcpflags, opener.tcpflags),
        ("target", closer.target, opener.target),
    ):
        if mine != theirs:
            report.add(closer.line_of(key), "left out", f"{key} of [{section.name}]: that of {title} counts for both")
    if cmd_timeout := section.last("cmd_timeout"):
        report.add(cmd_timeout.line, "left out", f"{cmd_timeout.written}: there is no stop command that it delays")
    return replace(opener, close_sequence=closer.sequence)
