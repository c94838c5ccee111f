"""Doors as the text of an nfknock configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from nfknock.knockd.doors import Draft
from nfknock.knockd.reader import COMMAND_KEYS
from nfknock.knockd.report import Note

_HEAD: Final = """\
# nfknock: imported from a knockd.conf. The sequences are secrets: keep this file at mode 0600.
# `nfknock check` says what is unwise here; docs/from-knockd.md says what differs from knockd.
"""
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def render(doors: Iterable[tuple[Draft, Sequence[Note]]], *, interface: str, has_syslog: bool, log_file: str) -> str:
    """Return the file's text. What stands in a door's notes becomes its comments."""
    blocks = [_HEAD]
    if interface:
        blocks.append(f"[firewall]\ninterfaces = {_value([interface])}\n")
    if has_syslog or log_file:
        syslog = ["syslog = true"] if has_syslog else []
        file = [f"file = {_value(log_file)}"] if log_file else []
        blocks.append("\n".join(["[log]", *syslog, *file]) + "\n")
    blocks.extend(_door(door, notes) for door, notes in doors)
    return "\n".join(blocks)


def _door(door: Draft, notes: Sequence[Note]) -> str:
    name = door.name if _BARE_KEY.fullmatch(door.name) else _value(door.name)
    lines = [f"[doors.{name}]"]
    lines += [f"# line {note.line}, {note.kind}: {note.text}" for note in notes]
    lines += [f"{key} = {_value(value)}" for key, value in _keys(door).items()]
    return "\n".join(lines) + "\n"


def _keys(door: Draft) -> dict[str, str | int | Sequence[str]]:
    """What stands in the section, in the order of docs/configuration.md."""
    keys: dict[str, str | int | Sequence[str]] = {}
    if door.one_time:
        keys["one_time_sequences"] = door.one_time
    else:
        keys["sequence"] = [_knock(port.number, port.protocol) for port in door.sequence]
    keys["seq_timeout"] = door.seq_timeout
    if door.deed == "opens":
        keys["open"] = [str(port) for port in door.opens]
        keys["open_timeout"] = door.open_timeout
    if door.close_sequence:
        keys["close_sequence"] = [_knock(port.number, port.protocol) for port in door.close_sequence]
    if door.tcpflags is not None:
        keys["tcpflags"] = door.tcpflags
    if door.target:
        keys["target"] = door.target
    if door.deed != "opens":
        commands = {key: door.commands[key].arguments for key in COMMAND_KEYS if key in door.commands}
        # A door that opens nothing has to say that it runs nothing either.
        keys |= {"start_command": (), **commands}
        if any(commands.get(key) for key in ("stop_command", "stop_command_6")):
            keys["cmd_timeout"] = door.cmd_timeout
    return keys


def _knock(number: int, protocol: str) -> str:
    return str(number) if protocol == "tcp" else f"{number}/{protocol}"


def _value(value: str | int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    return f"[{', '.join(map(_value, value))}]"


def _character(char: str) -> str:
    """One character of a basic string; what nobody could see is escaped, DEL among it."""
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
