"""`init` writes what `check` likes."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from nfknock.config import load
from nfknock.config.durations import format_duration, parse_duration
from nfknock.config.template import fresh_sequence, render
from nfknock.core.lint import lint
from nfknock.core.model import Opening, Port


def test_fresh_sequences_are_long_mixed_and_never_in_order() -> None:
    randbelow = random.Random(1).randrange
    for _ in range(500):
        sequence = fresh_sequence(avoid=[Port(22)], randbelow=randbelow)
        numbers = [port.number for port in sequence]
        assert len(numbers) >= 4
        assert len(set(numbers)) == len(numbers)
        assert {port.protocol for port in sequence} == {"tcp", "udp"}
        assert not all(a < b for a, b in pairwise(numbers))
        assert not all(a > b for a, b in pairwise(numbers))
        assert 22 not in numbers


def test_two_sequences_differ() -> None:
    assert fresh_sequence() != fresh_sequence()


def test_the_written_file_is_right_and_wise(tmp_path: Path) -> None:
    path = tmp_path / "nfknock.toml"
    sequence = fresh_sequence()
    path.write_text(render("web", sequence, [Port(80), Port(443, "udp")]))
    config = load(path)
    assert config.door("web").sequence == sequence
    assert config.door("web").opens == (Opening(Port(80)), Opening(Port(443, "udp")))
    assert list(lint(config.doors, config.allowed_ports)) == []


def test_the_example_doors_are_right_and_wise() -> None:
    config = load(Path(__file__).parents[2] / "rules" / "examples.toml")
    assert list(lint(config.doors, config.allowed_ports)) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1d", 86400), ("7", 7), (" 1.5 s ", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1 2", "5 parsecs", "-5s", "1e9"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 s"), (0.5, "0.5 s"), (3.999, "4.0 s"), (12.3, "12 s")])
def test_durations_in_logs(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
