"""Who is taken for a scanner, for how long, and within what memory."""

from __future__ import annotations

import pytest

from nfknock.core.scanners import MOST_IGNORED, MOST_SUSPECTS, Scanners, Thresholds

ONE, OTHER = b"\xc0\x00\x02\x02", b"\xc0\x00\x02\x03"
THRESHOLDS = Thresholds(ports=5, within=10, ignore_timeout=60)


def source(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_many_ports_in_a_short_time_are_a_scan() -> None:
    scanners = Scanners(THRESHOLDS)
    assert [scanners.note(ONE, port, 0) for port in range(6)] == [False] * 4 + [True, False]
    assert scanners.ignores(ONE, 59)
    assert not scanners.ignores(OTHER, 0)


def test_one_port_again_and_again_is_no_scan() -> None:
    scanners = Scanners(THRESHOLDS)
    assert not any(scanners.note(ONE, 80, second / 10) for second in range(100))


def test_few_ports_over_a_long_time_are_no_scan() -> None:
    scanners = Scanners(THRESHOLDS)
    assert not any(scanners.note(ONE, port, port * 3) for port in range(100))


def test_ignoring_ends_when_the_scan_has() -> None:
    scanners = Scanners(THRESHOLDS)
    for port in range(50):
        scanners.note(ONE, port, port)
    assert scanners.ignores(ONE, 49 + 59)
    assert scanners.count(49 + 59) == 1
    assert not scanners.ignores(ONE, 49 + 60)
    assert scanners.count(49 + 60) == 0


def test_it_is_news_once_a_minute() -> None:
    scanners = Scanners(Thresholds(ports=1, within=10, ignore_timeout=1))
    news = [second for second in range(0, 200, 2) if scanners.note(ONE, 80, second)]
    assert news == [0, 60, 120, 180]


@pytest.mark.parametrize("ports", [0])
def test_without_a_threshold_nobody_is_ignored(ports: int) -> None:
    scanners = Scanners(Thresholds(ports=ports))
    assert not any(scanners.note(ONE, port, 0) for port in range(1000))
    assert not scanners.ignores(ONE, 0)


def test_memory_is_bounded_and_a_scan_is_noticed_among_many_sources() -> None:
    scanners = Scanners(THRESHOLDS)
    noticed = False
    for number in range(5 * MOST_SUSPECTS):
        scanners.note(source(number), 80, 0)
        if number % 100 == 0:
            noticed |= scanners.note(ONE, number, 0)
    assert noticed
    assert len(scanners._suspects) <= MOST_SUSPECTS


def test_those_who_are_ignored_are_bounded() -> None:
    scanners = Scanners(Thresholds(ports=1))
    for number in range(2 * MOST_IGNORED):
        scanners.note(source(number), 80, 0)
    assert scanners.count(0) == MOST_IGNORED


def test_nothing_is_remembered_for_ever() -> None:
    scanners = Scanners(THRESHOLDS)
    for number in range(100):
        for port in range(number % 7):
            scanners.note(source(number), port, 0)
    scanners.forget(61)
    assert not scanners._suspects
    assert not scanners._ignored
