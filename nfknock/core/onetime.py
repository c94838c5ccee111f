"""The file of one-time sequences, in knockd's format: one a line, a `#` in front of those that were used.

Lines that are no sequence are nobody's: they are passed over and never touched, so that a line's number is the line's
number whatever stands above it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nfknock.core.model import LONGEST_SEQUENCE, Port, Sequence, end_alike


@dataclass(frozen=True, slots=True)
class Line:
    """An unused sequence; `number` counts lines from 1."""

    number: int
    sequence: Sequence


def parse_sequence(text: str) -> Sequence:
    """Read `7101,8203:udp,9307`, with `/udp` as well. Raises ValueError that says what would be right."""
    sequence = tuple(Port.parse(part.strip()) for part in text.split(","))
    if len(sequence) > LONGEST_SEQUENCE:
        raise ValueError(f"a sequence has at most {LONGEST_SEQUENCE} knocks")
    return sequence


def unused(raw: bytes, *, closing: Sequence = ()) -> list[Line]:
    """Return the sequences that a file still has, in order, each once, without those that end as `closing` does.

    One that stands there as used, before or behind, is used.
    """
    lines: dict[Sequence, Line] = {}
    used: set[Sequence] = set()
    for number, line in enumerate(raw.split(b"\n"), 1):
        text = line.decode("latin-1").strip()
        try:
            sequence = parse_sequence(text.removeprefix("#"))
        except ValueError:
            continue
        if text.startswith("#"):
            used.add(sequence)
        elif not end_alike(sequence, closing):
            lines.setdefault(sequence, Line(number, sequence))
    return [line for line in lines.values() if line.sequence not in used]


def mark(raw: bytes, used: Collection[int]) -> bytes:
    """Return the file with those lines (numbers from 1) marked as used."""
    lines = raw.split(b"\n")
    for number in used:
        line = lines[number - 1]
        # knockd puts the mark over the first byte, which is a blank in files that are written for it.
        lines[number - 1] = b"#" + (line[1:] if line[:1] in (b" ", b"\t") else line)
    return b"\n".join(lines)


def render(sequences: Iterable[Sequence]) -> str:
    """Return a file with these sequences."""
    lines = (",".join(f"{port.number}:{port.protocol}" for port in sequence) for sequence in sequences)
    return "".join(f" {line}\n" for line in lines)
