"""A command as a shell would split it, without a shell and without running anything.

knockd gives every command to `sh -c`. Most need no shell: their words are all there is. `split` finds the words and
says what, if anything, only a shell can do. `positional` rewrites a script that does need one, so that the address
comes in as `$1` instead of being pasted into it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ADDRESS = "%IP%"

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_EXPANSION = re.compile(r"\$[A-Za-z0-9_{(?!#@*$-]")
# What sh does itself, so that there is no program of the name, or not one that would do the same.
_BUILTINS = frozenset(
    (
        *("!", ".", ":", "[", "{", "}", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done"),
        *("elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fg", "fi", "for", "function", "getopts"),
        *("hash", "if", "jobs", "local", "read", "readonly", "return", "set", "shift", "source", "test", "then"),
        *("time", "times", "trap", "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait", "while"),
    )
)


@dataclass(frozen=True, slots=True)
class Script:
    """A command line in parts, which `;` or `&&` join; a part is the words of one program's call.

    `needs_shell` names what makes a shell needed, apart from there being several parts; empty if nothing does.
    """

    parts: tuple[tuple[str, ...], ...]
    needs_shell: str
    comment: str = ""


class _Splitter:
    """Reads one command line; the state of that is what this class is for."""

    def __init__(self, text: str) -> None:
        self.text = text.rstrip()
        self.at = 0
        self.word: str | None = None
        self.words: list[str] = []
        self.parts: list[tuple[str, ...]] = []
        self.comment = ""
        self.needs = ""

    def split(self) -> Script:
        while self.at < len(self.text):
            self._step(self.text[self.at])
        self._end_word()
        if self.words:
            self.parts.append(tuple(self.words))
        for part in self.parts:
            if part[0] in _BUILTINS or _ASSIGNMENT.match(part[0]) or not part[0]:
                self._need(f"`{part[0]}`")
        return Script(tuple(self.parts), self.needs, self.comment)

    def _step(self, char: str) -> None:
        match char:
            case "'" | '"':
                self._quoted(char)
            case "\\":
                self._add(self.text[self.at + 1 : self.at + 2])
                self.at += 2
            case ";" | "&" | "|" | "<" | ">" | "(" | ")" | "\n":
                self._operator(char)
            case "#" if self.word is None:
                self.comment = self.text[self.at :]
                self.at = len(self.text)
            case _ if char in " \t":
                self._end_word()
                self.at += 1
            case _:
                self._bare(char)

    def _bare(self, char: str) -> None:
        if char == "`" or _EXPANSION.match(self.text, self.at):
            self._need(f"`{self.text[self.at : self.at + 2].rstrip() if char == '$' else char}`")
        elif char in "*?[":
            self._need(f"the pattern `{char}`")
        elif char == "~" and self.word is None:
            self._need("`~`")
        self._add(char)
        self.at += 1

    def _quoted(self, mark: str) -> None:
        self._add("")
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != mark:
            char = self.text[self.at]
            if mark == '"' and char == "\\" and self.text[self.at + 1 : self.at + 2] in ("$", "`", '"', "\\"):
                self.at += 1
                char = self.text[self.at]
            elif mark == '"' and (char == "`" or _EXPANSION.match(self.text, self.at)):
                self._need(f"`{char}` between quotes")
            self._add(char)
            self.at += 1
        if self.at >= len(self.text):
            self._need(f"a quote {mark} that is never closed")
        self.at += 1

    def _operator(self, char: str) -> None:
        operator = char * 2 if self.text.startswith(char * 2, self.at) else char
        self._end_word()
        self.at += len(operator)
        is_last = self.at >= len(self.text)
        if operator not in (";", "&&") or not self.words or (operator == "&&" and is_last):
            self._need(f"`{operator}`".replace("\n", "\\n"))
        if self.words:
            self.parts.append(tuple(self.words))
        self.words = []

    def _add(self, text: str) -> None:
        self.word = (self.word or "") + text

    def _end_word(self) -> None:
        if self.word is not None:
            self.words.append(self.word)
        self.word = None

    def _need(self, what: str) -> None:
        self.needs = self.needs or what


def split(text: str) -> Script:
    """Split a command line; never raises."""
    return _Splitter(text).split()


def positional(script: str) -> str:
    """Return the script with every `%IP%` as the shell's `"$1"`, quoted for where it stands.

    What is pasted into a script becomes part of it, which an argument never does. Only an escaped one in a script with
    backquotes stays: backslashes count twice there, and an address has no character that a shell minds.
    """
    if "`" in script and f"\\{ADDRESS}" in script:
        return script
    out: list[str] = []
    # What we are inside of; only the last counts. "(" and "`" begin anew, even between double quotes.
    # Not a comment: that goes on to the end of all there is, so what becomes of an address in it does not matter.
    inside = [""]
    at = 0
    while at < len(script):
        if script.startswith(ADDRESS, at):
            piece, step = {'"': "$1", "'": "'\"$1\"'"}.get(inside[-1], '"$1"'), len(ADDRESS)
        elif inside[-1] != "'" and script[at] == "\\":
            piece, step = _escaped(script, at, inside[-1])
        else:
            piece = _enter_or_leave(script, at, inside)
            step = len(piece)
        out.append(piece)
        at += step
    return "".join(out)


def _escaped(script: str, at: int, inside: str) -> tuple[str, int]:
    """What a backslash and what it escapes become, and how many characters that were.

    Before `%IP%` it must not come to stand before what replaces that.
    """
    if script.startswith(ADDRESS, at + 1):
        return "\\\\" if inside == '"' else "", 1
    return script[at : at + 2], 2


def _enter_or_leave(script: str, at: int, inside: list[str]) -> str:
    """Follow one character, or `$(`, into and out of quotes; return it."""
    char = script[at]
    is_quoted = inside[-1] in ("'", '"')
    if char == "`" and "`" in inside:
        # The next backquote ends the command, whatever quotes are still open in it.
        del inside[inside.index("`") :]
    elif inside[-1] == "'":
        if char == "'":
            inside.pop()
    elif script.startswith("$(", at):
        inside.append("(")
        return "$("
    elif char == inside[-1] == '"':
        inside.pop()
    elif char == "`" or (char in "'\"(" and not is_quoted):
        inside.append(char)
    elif char == ")" and inside[-1] == "(":
        inside.pop()
    return char
