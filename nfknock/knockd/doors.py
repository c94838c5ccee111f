"""One section of knockd.conf as a door, and what its commands come to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nfknock.core.model import Port
from nfknock.knockd import values
from nfknock.knockd.action import Action, Deed
from nfknock.knockd.commands import Command, understand
from nfknock.knockd.reader import COMMAND_KEYS, Section, Setting
from nfknock.knockd.report import KnockdError, Report, quote

SEQ_TIMEOUT: Final = 25
CMD_TIMEOUT: Final = 10
_LONGEST_SEQ_TIMEOUT: Final = 3600
_LONGEST_OPEN_TIMEOUT: Final = 366 * 86400
_LONGEST_NAME: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A door on its way. `deed` is what it is for: to open ports, to close them, or to run commands ("other").

    `tcpflags` None means that nothing is written. `close_sequence` comes from another section. Times are in seconds.
    """

    section: Section
    name: str
    sequence: tuple[Port, ...]
    one_time: str
    seq_timeout: int
    tcpflags: str | None
    target: str
    commands: dict[str, Command]
    cmd_timeout: int
    deed: Deed = "other"
    opens: tuple[Port, ...] = ()
    open_timeout: int = 0
    close_sequence: tuple[Port, ...] = ()
    why_commands: str = ""

    @property
    def action(self) -> Action | None:
        """What its start command does."""
        start = self.commands.get("start_command")
        return start.action if start else None

    def line_of(self, key: str) -> int:
        """Where a key stands; where the section begins if it does not."""
        setting = self.section.last(key)
        return setting.line if setting else self.section.line


def draft(section: Section, name: str, report: Report, *, is_exact: bool) -> Draft:
    """Read a section's values. Raises KnockdError."""
    _report_losers(section, report)
    knocks, one_time = _sequence(section, report)
    tcpflags = _tcpflags(section, knocks, report, is_exact=is_exact)
    target = section.last("target")
    cmd_timeout = section.last("cmd_timeout")
    commands = [(key, section.last(key)) for key in COMMAND_KEYS]
    return Draft(
        section=section,
        name=name,
        sequence=knocks,
        one_time=one_time,
        seq_timeout=_seq_timeout(section, report),
        tcpflags=tcpflags,
        target=values.target(target, report) if target and target.value else "",
        commands={key: understand(each.line, each.written, each.value) for key, each in commands if each},
        cmd_timeout=values.seconds(cmd_timeout, report, _LONGEST_OPEN_TIMEOUT) if cmd_timeout else CMD_TIMEOUT,
    )


def _report_losers(section: Section, report: Report) -> None:
    """Say which lines another line of the same section overrules."""
    winners: dict[str, Setting] = {}
    for setting in section.settings:
        # Both say what the knocks are.
        key = "sequence" if setting.key == "one_time_sequences" else setting.key
        if loser := winners.get(key):
            report.add(loser.line, "left out", f"{loser.written}: line {setting.line} overrules it")
        winners[key] = setting


def _sequence(section: Section, report: Report) -> tuple[tuple[Port, ...], str]:
    """Return the knocks or the file that has them; the later line wins."""
    both = [setting for setting in section.settings if setting.key in ("sequence", "one_time_sequences")]
    if not both:
        hint = "; the options of knockd stand below [options], in small letters" if _is_options(section.name) else ""
        raise KnockdError(section.line, f"[{quote(section.name)[1:-1]}] is a door without a sequence{hint}")
    # knockd reads the ones that lose, too, and refuses what is wrong in them.
    read = [() if each.key == "one_time_sequences" else values.sequence(each) for each in both]
    if both[-1].key == "one_time_sequences":
        return (), values.path(both[-1], report)
    return read[-1], ""


def _is_options(name: str) -> bool:
    return name.strip().lower() in ("options", "option", "opts", "settings")


def _seq_timeout(section: Section, report: Report) -> int:
    if setting := section.last("seq_timeout"):
        return values.seconds(setting, report, _LONGEST_SEQ_TIMEOUT)
    report.add(section.line, "changed", f"no seq_timeout: knockd's {SEQ_TIMEOUT} s are written (nfknock's is 5 s)")
    return SEQ_TIMEOUT


def _tcpflags(section: Section, knocks: Iterable[Port], report: Report, *, is_exact: bool) -> str | None:
    protocols = {port.protocol for port in knocks}
    setting = section.last("tcpflags")
    if setting is not None and protocols == {"udp"}:
        values.tcpflags(setting, report)
        report.add(setting.line, "left out", f"{setting.written}: every knock is UDP, which has no flags")
        return None
    if setting is not None:
        return values.ordinary_tcpflags(setting, report, is_exact=is_exact)
    if protocols == {"udp"}:
        return None
    if is_exact:
        report.add(section.line, "unwise", 'no tcpflags: every TCP packet is a knock (tcpflags = "")')
        return ""
    report.add(
        section.line,
        "changed",
        "no tcpflags: knockd takes every TCP packet for a knock, nfknock a SYN alone (import --exact keeps it)",
    )
    return None


def name_doors(sections: Sequence[Section], report: Report) -> list[str]:
    """Return a name for every section that the configuration can have, each once."""
    taken: set[str] = set()
    names: list[str] = []
    for section in sections:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", section.name).strip("-._")[:_LONGEST_NAME] or "door"
        name = section.name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", section.name) else stem
        count = 1
        while name in taken:
            count += 1
            name = f"{stem[: _LONGEST_NAME - 4]}-{count}"
        taken.add(name)
        names.append(name)
        if name != section.name:
            report.add(section.line, "changed", f"[{quote(section.name)[1:-1]}] is called doors.{name}")
    return names


def judge(door: Draft) -> Draft:
    """Say what a door is for, and if it has to stay a door of commands, why."""
    start, six = (door.commands.get(key) for key in ("start_command", "start_command_6"))
    stops = [door.commands[key] for key in ("stop_command", "stop_command_6") if key in door.commands]
    stops = [stop for stop in stops if stop.text]
    if start is None or start.action.deed == "other":
        return door
    if six is not None and (six.action.deed, six.action.ports) != (start.action.deed, start.action.ports):
        nothing = "runs nothing for IPv6, and a hole is for both" if not six.text else "does something else for IPv6"
        return replace(door, why_commands=f"{six.key} {nothing}")
    if start.action.deed == "closes":
        if stops:
            return replace(door, why_commands=f"it closes, and {stops[0].key} comes after that")
        return replace(door, deed="closes")
    if not all(stop.action.undoes(start.action) for stop in stops):
        return replace(door, why_commands=f"{start.key} and {stops[0].key} do not match")
    limits = [door.cmd_timeout] if stops else []
    limits += [each.action.seconds for each in (start, six) if each is not None and each.action.seconds]
    timeout = min(limits, default=0)
    ports = tuple(sorted(start.action.ports, key=lambda port: (port.number, port.protocol)))
    return replace(door, deed="opens", opens=ports, open_timeout=min(timeout, _LONGEST_OPEN_TIMEOUT))
