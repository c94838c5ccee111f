"""A knockd.conf becomes an nfknock configuration, and every line of it is accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nfknock.core.lint import lint
from nfknock.core.model import Commands, Door, Opening, TcpFlags, as_source
from nfknock.knockd import values
from nfknock.knockd.commands import Command
from nfknock.knockd.doors import Draft, draft, judge, name_doors
from nfknock.knockd.pairs import pair
from nfknock.knockd.reader import Section, Source, decode, read
from nfknock.knockd.report import KnockdError, Note, Report
from nfknock.knockd.shell import ADDRESS
from nfknock.knockd.toml import render

# Keys whose value stands without quotes, which is no TOML.
_KNOCKD_KEY = re.compile(r"^\s*(?:sequence|one_time_sequences)[ \t]*=[ \t]*[^\s\"'\[{]", re.IGNORECASE | re.MULTILINE)
_OUR_TABLE = re.compile(r"^\s*\[\s*doors\s*\.", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The TOML, and what there is to know about the lines that it came from, in their order."""

    text: str
    notes: tuple[Note, ...]


def looks_like_knockd(text: str) -> bool:
    """Whether a configuration is knockd's: sequences without quotes, and no table of ours."""
    text = text.replace("\r", "\n")
    return bool(_KNOCKD_KEY.search(text)) and not _OUR_TABLE.search(text)


def convert(raw: bytes, *, is_exact: bool = False) -> Conversion:
    """Convert the content of a knockd.conf. Raises KnockdError, which names the line.

    With `is_exact`, `tcpflags` mean what they mean to knockd, even where no client can knock so.
    """
    report = Report()
    source = read(decode(raw, report), report)
    if not source.doors:
        raise KnockdError(source.options.line or 1, "there is no door in this file")
    names = name_doors(source.doors, report)
    drafts = [
        judge(draft(section, name, report, is_exact=is_exact))
        for section, name in zip(source.doors, names, strict=True)
    ]
    _check_files(drafts)
    doors = pair(drafts, report)
    for door in doors:
        _report_door(door, report)
    _lint(doors, report)
    return Conversion(_text(source, doors, report), report.sorted())


def _check_files(doors: Iterable[Draft]) -> None:
    """Two doors cannot use up one file. Raises KnockdError."""
    owners: dict[str, str] = {}
    for door in doors:
        if door.one_time and owners.setdefault(door.one_time, door.name) != door.name:
            line = door.line_of("one_time_sequences")
            raise KnockdError(line, f"one_time_sequences: doors.{owners[door.one_time]} has this file already")


def _report_door(door: Draft, report: Report) -> None:
    if door.deed == "opens":
        _report_hole(door, report)
    else:
        _report_commands(door, report)


def _report_hole(door: Draft, report: Report) -> None:
    """Say what became of the commands of a door that opens ports."""
    ports = ", ".join(f'"{port}"' for port in door.opens)
    start = door.commands["start_command"]
    limit = f" and open_timeout = {door.open_timeout}" if door.open_timeout else ""
    for command in door.commands.values():
        if command.action.deed == "opens":
            report.add(command.line, "changed", f"{command.key}: becomes open = [{ports}]{limit}, for IPv4 and IPv6")
        elif command.text:
            report.add(command.line, "changed", f"{command.key}: is what the end of open_timeout does")
            _report_mismatch(start, command, report)
        else:
            report.add(command.line, "left out", f"{command.key}: is empty; the hole ends as it does for IPv4")
        report.extend(command.line, "changed", command.action.remarks)
        if command.comment:
            report.add(command.line, "left out", f"{command.key}: the comment behind the command")
    _report_cmd_timeout(door, report)
    if not door.open_timeout and not door.close_sequence:
        text = "nothing closes it: it stays open until `nfknock close`; give it an open_timeout"
        report.add(start.line, "unwise", text)


def _report_mismatch(start: Command, stop: Command, report: Report) -> None:
    if start.action.program != stop.action.program:
        text = (
            f"it speaks to {stop.action.program} and {start.key} to {start.action.program}, so knockd never closed it"
        )
    elif stop.action.ports and start.condition != stop.condition:
        text = f"it does not name the rule as {start.key} does; what counts is the port, which is the same"
    else:
        return
    report.add(stop.line, "changed", f"{stop.key}: {text}")


def _report_cmd_timeout(door: Draft, report: Report) -> None:
    stops = [door.commands[key] for key in ("stop_command", "stop_command_6") if key in door.commands]
    setting = door.section.last("cmd_timeout")
    if any(stop.text for stop in stops):
        if setting is None:
            text = f"no cmd_timeout: knockd's {door.cmd_timeout} s are written"
            report.add(door.section.line, "changed", text)
    elif setting is not None:
        text = f"{setting.written}: there is no stop command that it delays, so knockd ignores it too"
        report.add(setting.line, "left out", text)


def _report_commands(door: Draft, report: Report) -> None:
    """Say what became of the commands of a door that stays one of commands."""
    for command in door.commands.values():
        if not command.text:
            report.add(command.line, "kept", f"{command.key}: is empty and runs nothing")
            continue
        report.add(command.line, "kept", f"{command.key}: stays a command{_how(command)}{_why(door, command)}")
        if command.action.program:
            text = (
                "it changes the host's other rules; a packet must pass nfknock's too, which drop what no hole lets in"
            )
            report.add(command.line, "unwise", f"{command.key}: {text}")
    if not door.commands:
        report.add(door.section.line, "kept", "no command: the door runs nothing and logs its knocks alone")
    _report_cmd_timeout(door, report)


def _how(command: Command) -> str:
    if not command.shell:
        return ""
    address = "" if any(ADDRESS in word for word in command.arguments[:-1]) else ' with the address as "$1"'
    return f", run as {command.arguments[0]} -c{address}, because of {command.shell}"


def _why(door: Draft, command: Command) -> str:
    reason = command.action.reason or door.why_commands
    return f": {reason}" if reason else ""


def _lint(doors: Sequence[Draft], report: Report) -> None:
    """Have the findings of `check` about the sequences in the report, each at the line of its sequence."""
    lines = {door.name: door.line_of("sequence") for door in doors}
    made = tuple(_core_door(door) for door in doors if door.sequence)
    for text in lint(made):
        name = max((name for name in lines if text.startswith(f"doors.{name}.sequence: ")), key=len, default="")
        if name:
            report.add(lines[name], "unwise", text.removeprefix(f"doors.{name}."))


def _core_door(door: Draft) -> Door:
    """The door as the configuration will have it. Raises KnockdError for what that would refuse."""
    try:
        return Door(
            name=door.name,
            sequence=door.sequence,
            opens=tuple(map(Opening, door.opens)),
            seq_timeout=door.seq_timeout,
            open_timeout=door.open_timeout,
            close_sequence=door.close_sequence,
            tcpflags=TcpFlags.parse(door.tcpflags or ""),
            target=as_source(door.target) if door.target else None,
            commands=None if door.opens else Commands(),
        )
    except ValueError as exc:
        raise KnockdError(door.section.line, str(exc)) from exc


def _text(source: Source, doors: Sequence[Draft], report: Report) -> str:
    interface, log_file = _options(source.options, report)
    commented = [(door, report.about(_lines(door), ("kept", "unwise"))) for door in doors]
    return render(commented, interface=interface, has_syslog=source.has_syslog, log_file=log_file)


def _lines(door: Draft) -> list[int]:
    """The lines whose notes become comments; `check` says by itself what is unwise about a sequence."""
    return [door.section.line, *(each.line for each in door.section.settings if each.key != "sequence")]


def _options(options: Section, report: Report) -> tuple[str, str]:
    """Return the interface and the log file; an empty text for none."""
    interfaces = [setting for setting in options.settings if setting.key == "interface"]
    # knockd takes the first of several here, and the last of everything else.
    for loser in interfaces[1:]:
        report.add(loser.line, "left out", f"{loser.written}: knockd takes the first, in line {interfaces[0].line}")
    if not interfaces:
        text = "no interface: knockd listens on eth0 alone, nfknock on all but loopback"
        report.add(options.line or 1, "changed", text)
    files = [setting for setting in options.settings if setting.key == "logfile"]
    for loser in files[:-1]:
        report.add(loser.line, "left out", f"{loser.written}: line {files[-1].line} overrules it")
    for setting in options.settings:
        if setting.key == "pidfile":
            report.add(setting.line, "left out", f"{setting.written}: nfknock has no such file; its lock says it runs")
    interface = values.interface(interfaces[0], report) if interfaces else ""
    return interface, values.path(files[-1], report) if files and files[-1].value else ""
