"""Whatever stands in the file: a KnockdError, or a configuration that `check` accepts and a report that is complete."""

from __future__ import annotations

import tomllib

from hypothesis import example, given
from hypothesis import strategies as st

from nfknock.knockd import Conversion, KnockdError, convert
from nfknock.knockd.reader import decode, read
from nfknock.knockd.report import Report
from tests.knockd.files import TIMED_TUTORIAL, TUTORIAL, checked
from tests.knockd.test_forms import CLOSES, OPENS, STAYS

COMMANDS = [*(each[0] for each in OPENS), *CLOSES, *(each[0] for each in STAYS)]
LINES = [
    *(TUTORIAL + TIMED_TUTORIAL).splitlines(),
    *(f"{key} = {command}" for key in ("command", "stop_command", "command_6") for command in COMMANDS),
    *("[options]", "[a]", "[b c]", "[a]", "[]", "interface = eth0 # x", "pidfile = /x", "usesyslog", "# note", "\\"),
    *("sequence = 1,2:udp,3", "sequence = 3,2:udp,1", "sequence = 1,2:udp,3", "one_time_sequences = /f", "x = y"),
    *("command =", "target = ::1", "target = here", "tcpflags = ack", "cmd_timeout = 0", "seq_timeout = 0"),
]


def hold(raw: bytes, conversion: Conversion) -> None:
    """The promises about every file that can be imported."""
    checked(conversion.text)
    doors = tomllib.loads(conversion.text)["doors"]
    lines = {note.line for note in conversion.notes}
    for section in read(decode(raw, Report()), Report()).doors:
        assert section.name in doors or section.line in lines
    assert all(note.text.isprintable() for note in conversion.notes)
    assert [note.line for note in conversion.notes] == sorted(note.line for note in conversion.notes)


def attempt(raw: bytes, *, is_exact: bool = False) -> None:
    try:
        conversion = convert(raw, is_exact=is_exact)
    except KnockdError as exc:
        assert str(exc).startswith("line ")
    else:
        hold(raw, conversion)


@given(st.binary(max_size=300))
@example(b"[a]\nsequence=1\ncommand=\xff\\")
def test_rubbish(raw: bytes) -> None:
    attempt(raw)


@given(st.binary(max_size=60), st.booleans())
def test_rubbish_as_a_command(raw: bytes, is_exact: bool) -> None:  # noqa: FBT001
    attempt(b"[a]\nsequence = 1\ncommand = " + raw, is_exact=is_exact)


@given(st.lists(st.sampled_from(LINES), max_size=25), st.booleans())
def test_lines_in_any_order(lines: list[str], is_exact: bool) -> None:  # noqa: FBT001
    attempt("\n".join(["[a]", "sequence = 4,5:udp", *lines]).encode(), is_exact=is_exact)


@given(st.sampled_from([TUTORIAL, TIMED_TUTORIAL]), st.integers(0, 600), st.integers(0, 20), st.binary(max_size=8))
def test_a_good_file_that_was_damaged(text: str, at: int, length: int, new: bytes) -> None:
    raw = text.encode()
    attempt(raw[:at] + new + raw[at + length :])
