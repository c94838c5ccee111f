"""What the importer has to say about a file, line by line."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["changed", "kept", "left out", "unwise"]

# A line of the report stays readable, whatever stood in the file.
_LONGEST_QUOTE = 120


class KnockdError(ValueError):
    """The file is wrong; the text begins with `line N: ` and says what would be right."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """One thing that the reader of the report should know about a line of the source (counted from 1)."""

    line: int
    kind: Kind
    text: str


def visible(text: str) -> str:
    """Return the text with everything escaped that a terminal would not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quote(text: str) -> str:
    """Return what somebody wrote for use in a note: printable, of reasonable length, between backquotes."""
    shown = visible(text)
    return f"`{shown}`" if len(shown) <= _LONGEST_QUOTE else f"`{shown[:_LONGEST_QUOTE]}…`"


class Report:
    """Collects the notes; every step of the import adds its own."""

    __slots__ = ("_notes",)

    def __init__(self) -> None:
        # By line; the inner dictionaries are for their order, and nothing is said twice.
        self._notes: dict[int, dict[Note, None]] = {}

    def add(self, line: int, kind: Kind, text: str) -> None:
        """Add a note; it is made fit for a terminal here, so that no step can forget to."""
        self._notes.setdefault(line, {})[Note(line, kind, visible(text))] = None

    def extend(self, line: int, kind: Kind, texts: Iterable[str]) -> None:
        """Add several notes about one line."""
        for text in texts:
            self.add(line, kind, text)

    def about(self, lines: Iterable[int], kinds: Collection[Kind]) -> list[Note]:
        """Return the notes of these kinds about these lines, in the order of the source."""
        return [note for line in sorted(lines) for note in self._notes.get(line, ()) if note.kind in kinds]

    def sorted(self) -> tuple[Note, ...]:
        """Return all notes in the order of the source, and about one line in the order they were made."""
        return tuple(note for line in sorted(self._notes) for note in self._notes[line])
