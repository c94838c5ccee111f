"""knockd.conf as sections with line numbers.

knockd's own rules: a key is split at the first `=`, `#` is a comment at the start of a line alone, keys do not care
for case and section names do. What people write beyond them (comments behind values, backslashes at the end of a
line, a BOM, Latin-1) is read as they meant it, and reported.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nfknock.knockd.report import KnockdError, Report, quote

_SAME_KEY = {"command": "start_command", "command_6": "start_command_6", "timeout": "seq_timeout"}
COMMAND_KEYS = ("start_command", "start_command_6", "stop_command", "stop_command_6")
OPTION_KEYS = ("logfile", "pidfile", "interface")
DOOR_KEYS = ("sequence", "one_time_sequences", "seq_timeout", "tcpflags", "target", "cmd_timeout", *COMMAND_KEYS)
_SYSLOG = "usesyslog"

# knockd itself reads no longer line than a path may be, and no file has as many doors.
_LONGEST_LINE = 8192
_MOST_DOORS = 256
_MOST_LINES = 20_000
_MOST_NAMED = 20

_HEADER = re.compile(r"\[(?P<name>.*)\]")
_HEADER_WITH_COMMENT = re.compile(r"\[(?P<name>[^]]*)\]\s*#.*")
_COMMENT = re.compile(r"(?:^|\s+)#.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Setting:
    """One `key = value`; the key is canonical (`command` is `start_command`), `written` is how it stands there."""

    line: int
    key: str
    value: str
    written: str


@dataclass(frozen=True, slots=True)
class Section:
    """A `[name]` and what stands below it."""

    line: int
    name: str
    settings: tuple[Setting, ...] = ()

    def last(self, key: str) -> Setting | None:
        """Return the setting that counts: the last of several."""
        return next((each for each in reversed(self.settings) if each.key == key), None)


@dataclass(frozen=True, slots=True)
class Source:
    """A whole file. `options` has the settings of every [options]; its line is 0 if there is none."""

    options: Section
    doors: tuple[Section, ...]
    has_syslog: bool


def decode(raw: bytes, report: Report) -> str:
    """Return the text: UTF-8 with or without a BOM, or else Latin-1, which is reported. Raises KnockdError."""
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        text = raw.decode("latin-1")
        report.add(line, "changed", "is not UTF-8; the file was read as Latin-1")
    if "\0" in text:
        raise KnockdError(text.count("\n", 0, text.index("\0")) + 1, "has a NUL byte; this is no text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read(text: str, report: Report) -> Source:
    """Split the text into sections. Raises KnockdError."""
    # The one of [options] first, whether it is there or not.
    found: list[tuple[int, str, list[Setting]]] = [(0, "options", [])]
    now: list[Setting] | None = None
    has_syslog = False
    for line, words in _lines(text, report):
        if (name := _header(line, words, report)) is not None:
            now = _enter(found, line, name)
        elif now is None:
            raise KnockdError(line, f"{quote(words)} stands before the first [section]")
        elif words.lower() == _SYSLOG:
            has_syslog = True
        elif (setting := _setting(line, words, report, is_option=now is found[0][2])) is not None:
            now.append(setting)
    options, *doors = (Section(line, name, tuple(settings)) for line, name, settings in found)
    return Source(options, tuple(doors), has_syslog)


def _enter(found: list[tuple[int, str, list[Setting]]], line: int, name: str) -> list[Setting]:
    """Return where the settings of a section go; all [options] are one. Raises KnockdError."""
    if name == "options":
        found[0] = (found[0][0] or line, name, found[0][2])
        return found[0][2]
    if len(found) > _MOST_DOORS:
        raise KnockdError(line, f"is door {len(found)}; at most {_MOST_DOORS} can be imported")
    found.append((line, name, []))
    return found[-1][2]


def _lines(text: str, report: Report) -> Iterator[tuple[int, str]]:
    """Yield what is neither empty nor a comment, with continuations joined to the line that they continue."""
    lines = [line.strip() for line in text.split("\n")]
    if len(lines) > _MOST_LINES:
        raise KnockdError(_MOST_LINES + 1, f"the file is longer than {_MOST_LINES} lines")
    _report_comments(lines, report)
    at = 0
    while at < len(lines):
        line, words = at + 1, lines[at]
        at += 1
        if not words or words.startswith("#"):
            continue
        while words.endswith("\\") and "=" in words and len(words) <= _LONGEST_LINE:
            words = words[:-1].rstrip()
            if at >= len(lines) or not _continues(lines[at]):
                report.add(line, "changed", "the backslash at its end continues nothing and is left out")
                break
            report.add(at + 1, "changed", f"continues line {line} (knockd does not know that, and refuses the file)")
            words = f"{words} {lines[at]}"
            at += 1
        if len(words) > _LONGEST_LINE:
            raise KnockdError(line, f"is longer than {_LONGEST_LINE} characters")
        yield line, words


def _report_comments(lines: Sequence[str], report: Report) -> None:
    found = [number for number, line in enumerate(lines, 1) if line.startswith("#")]
    if found:
        which = ", ".join(map(str, found[:_MOST_NAMED])) + (", …" if len(found) > _MOST_NAMED else "")
        report.add(found[0], "left out", f"comments are not carried over ({_plural('line', found)} {which})")


def _plural(word: str, things: list[int]) -> str:
    return word if len(things) == 1 else f"{word}s"


def _continues(words: str) -> bool:
    """Whether a line may go on with the one before; a key, a header or a comment does not."""
    if not words or words.startswith(("#", "[")) or words.lower() == _SYSLOG:
        return False
    key = words.partition("=")[0].strip().lower()
    return "=" not in words or _SAME_KEY.get(key, key) not in (*DOOR_KEYS, *OPTION_KEYS)


def _header(line: int, words: str, report: Report) -> str | None:
    if not words.startswith("["):
        return None
    match = _HEADER.fullmatch(words)
    if match is None and (match := _HEADER_WITH_COMMENT.fullmatch(words)):
        report.add(line, "changed", "the comment behind the section's name is left out (knockd refuses the file)")
    if match is None:
        raise KnockdError(line, f"{quote(words)} is no section; its name stands between [ and ]")
    if not match["name"].strip():
        raise KnockdError(line, "[] is a section without a name")
    return match["name"]


def _setting(line: int, words: str, report: Report, *, is_option: bool) -> Setting | None:
    written, equals, value = (part.strip() for part in words.partition("="))
    key = _SAME_KEY.get(written.lower(), written.lower())
    if not equals:
        raise KnockdError(line, f"{quote(words)} is neither `key = value` nor a [section]")
    if key == _SYSLOG:
        raise KnockdError(line, "UseSyslog takes no value; the bare word turns it on")
    known = OPTION_KEYS if is_option else DOOR_KEYS
    if key not in known:
        place = "[options]" if is_option else "a door"
        near = difflib.get_close_matches(key, known, 1, 0.87)
        hint = f"; is {near[0]} meant?" if near else ""
        # Not its value: the keys of forks are secrets.
        report.add(line, "left out", f"{quote(written)}: knockd has no such key in {place}{hint}")
        return None
    if key not in COMMAND_KEYS and (comment := _COMMENT.search(value)):
        report.add(line, "changed", f"{written}: the comment behind the value is left out")
        value = value[: comment.start()].rstrip()
    return Setting(line, key, value, written)
