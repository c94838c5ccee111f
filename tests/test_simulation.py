"""What a capture would have made the daemon say: told as stories, with the capture's clock."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import count
from pathlib import Path

import pytest

from nfknock.config import load
from nfknock.core import onetime
from nfknock.core.model import Port
from nfknock.core.packet import Packet
from nfknock.daemon import logs
from nfknock.daemon.simulation import Simulation
from tests.core.story import ACK

ALICE, BOB, HERE = "192.0.2.2", "192.0.2.3", "192.0.2.1"
AT = 1_700_000_000.0
DOOR = """
[doors.ssh]
sequence = ["7101", "8203/udp", "9307"]
open = ["22/tcp"]
open_timeout = "{timeout}"
close_sequence = ["9307", "8203/udp", "7101"]
"""
KNOCKS = ("7101", "8203/udp", "9307")

Packets = list[tuple[float, Packet | None]]
_fresh = count(1)


def knock(at: float, *ports: str, source: str = ALICE, target: str = HERE, step: float = 0.0) -> Packets:
    """Packets of new connections, `step` seconds apart, the first at `at` seconds."""
    found: Packets = []
    for index, text in enumerate(ports):
        port, fresh = Port.parse(text), next(_fresh)
        flags = 2 if port.protocol == "tcp" else 0
        addresses = ip_address(source).packed, ip_address(target).packed
        found.append(
            (AT + at + index * step, Packet(*addresses, port.code >> 16, fresh % 60_000, port.number, fresh, flags))
        )
    return found


def ping(at: float) -> Packets:
    """A packet that is nothing, and lets time pass."""
    return [(AT + at, None)]


def simulate(path: Path, *packets: Packets, timeout: str = "30s", more: str = "") -> list[tuple[float, str]]:
    """Return what was said: seconds since the beginning, and the line, without the address if it is Alice's."""
    config = path / "nfknock.toml"
    config.write_text(DOOR.format(timeout=timeout) + more)
    simulation = Simulation(load(config))
    said = simulation.run(pair for some in packets for pair in some)
    return [(round(line.at - AT, 3), line.text.removeprefix(f"{ALICE}: ssh: ")) for line in said]


OPENED = [(0, "Stage 1"), (0, "Stage 2"), (0, "Stage 3"), (0, "OPEN SESAME"), (0, "opened 22/tcp for 30 s")]


def test_a_knock_that_opens(tmp_path: Path) -> None:
    assert simulate(tmp_path, knock(0, *KNOCKS)) == OPENED


def test_the_hole_ends_at_its_time(tmp_path: Path) -> None:
    assert simulate(tmp_path, knock(0, *KNOCKS), ping(29.9)) == OPENED
    assert simulate(tmp_path, knock(0, *KNOCKS), ping(30)) == [*OPENED, (30, "closed after 30 s")]
    assert simulate(tmp_path, knock(0, *KNOCKS), ping(3_000_000)) == [*OPENED, (30, "closed after 30 s")]


def test_a_knock_in_time_renews(tmp_path: Path) -> None:
    said = simulate(tmp_path, knock(0, *KNOCKS), knock(20, *KNOCKS), ping(60))
    assert said[5:] == [
        (20, "Stage 1"), (20, "Stage 2"), (20, "Stage 3"), (20, "OPEN SESAME"),
        (20, "renewed 22/tcp for 30 s"), (50, "closed after 50 s"),
    ]  # fmt: skip


def test_a_knock_after_the_end_opens_anew(tmp_path: Path) -> None:
    said = simulate(tmp_path, knock(0, *KNOCKS), knock(30, *KNOCKS))
    assert (30, "closed after 30 s") in said
    assert said[-1] == (30, "opened 22/tcp for 30 s")


def test_the_closing_sequence(tmp_path: Path) -> None:
    said = simulate(tmp_path, knock(0, *KNOCKS), knock(9, *reversed(KNOCKS)), timeout="0")
    assert (0, "opened 22/tcp until it is closed") in said
    assert said[-2:] == [(9, "CLOSE SESAME"), (9, "closed after 9 s")]


def test_a_closing_sequence_where_nothing_is_open(tmp_path: Path) -> None:
    assert simulate(tmp_path, knock(0, *reversed(KNOCKS)))[-1] == (0, "CLOSE SESAME")


def test_an_attempt_that_takes_too_long_ends_at_a_tick(tmp_path: Path) -> None:
    said = simulate(tmp_path, knock(0, "7101"), knock(60, "7101"))
    assert said == [(0, "Stage 1"), (6, "sequence timeout (stage 1)"), (60, "Stage 1")]


def test_fractions_count(tmp_path: Path) -> None:
    assert simulate(tmp_path, knock(0, *KNOCKS, step=2.5))[-1] == (5, "opened 22/tcp for 30 s")
    assert (5.02, "OPEN SESAME") not in simulate(tmp_path, knock(0, *KNOCKS, step=2.51))


def test_time_never_goes_back(tmp_path: Path) -> None:
    """Captures that were merged: what is out of order happens when it is read."""
    said = simulate(tmp_path, knock(100, "7101"), knock(97, "8203/udp"), knock(0, "9307"), ping(50), ping(131))
    assert said == [(100 + at, text) for at, text in [*OPENED, (30, "closed after 30 s")]]


@pytest.mark.parametrize("far", [4e9, 2e11])
def test_a_leap_of_the_clock_takes_no_time(tmp_path: Path, far: float) -> None:
    said = simulate(tmp_path, knock(-AT, "7101"), knock(far, *KNOCKS))
    assert [text for _at, text in said][:2] == ["Stage 1", "sequence timeout (stage 1)"]
    assert said[-1] == (far, "opened 22/tcp for 30 s")


def test_only_what_the_firewall_would_queue_counts(tmp_path: Path) -> None:
    """Knock ports alone: not what is allowed already, not what a hole lets in, not what the host sends to itself."""
    more = (
        '[firewall]\nallow = [{ open = "7101", from = "192.0.2.3" }]\n'
        '[doors.all]\nsequence = ["5101", "5203/udp"]\nopen = ["8203/udp"]\n'
    )
    assert simulate(tmp_path, knock(0, "7101", source=BOB), more=more) == []
    assert simulate(tmp_path, knock(0, "7101", source=HERE), more=more) == []
    said = simulate(tmp_path, knock(0, "5101", "5203/udp", *KNOCKS), more=more)
    assert said[-2:] == [(0, f"{ALICE}: all: opened 8203/udp for 30 s"), (0, "Stage 1")]


def test_strays_count_as_the_firewall_would_show_them(tmp_path: Path) -> None:
    """Without a scan's flags, or as an answer to a question of ours, a packet is none."""
    stray = knock(0, "1234")
    harmless: Packets = [(at, packet._replace(flags=ACK)) for at, packet in stray if packet]
    harmless += [(at, packet._replace(source_port=53)) for at, packet in knock(0, "4711/udp") if packet]
    assert simulate(tmp_path, knock(0, "7101"), harmless, knock(0, "8203/udp", "9307")) == OPENED
    assert simulate(tmp_path, knock(0, "7101"), stray, knock(0, "8203/udp", "9307")) == OPENED[:1]
    unwatched = "[guard]\nstrays = false\n"
    assert simulate(tmp_path, knock(0, "7101"), stray, knock(0, "8203/udp", "9307"), more=unwatched) == OPENED
    scan = [str(port) for port in range(100, 200)]
    [*_, ignored] = simulate(tmp_path, knock(0, *scan))
    assert ignored == (0, f"{ALICE}: hit 20 closed ports; ignored until it has hit none for 60 s")


def test_two_sources_and_both_families(tmp_path: Path) -> None:
    six = "2001:db8::2"
    said = simulate(tmp_path, knock(0, *KNOCKS), knock(1, *KNOCKS, source=six, target="2001:db8::1"), ping(99))
    assert [said[-3][1], *said[-2:]] == [
        f"{six}: ssh: opened 22/tcp for 30 s", (30, "closed after 30 s"), (31, f"{six}: ssh: closed after 30 s")
    ]  # fmt: skip


def test_a_flood_is_cut_as_in_the_daemon(tmp_path: Path) -> None:
    flood = [
        pair for number in range(1000) for pair in knock(number / 1000, "7101", source=f"198.51.100.{number % 250}")
    ]
    said = simulate(tmp_path, flood, knock(2, *KNOCKS), ping(20))
    assert len([text for _at, text in said if "Stage" in text]) < 40
    assert any(text.endswith("lines about knocks were left out") for _at, text in said)
    assert (2, "opened 22/tcp for 30 s") in said


def test_it_leaves_the_log_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (logs.log.level, logs.log.propagate, list(logs.log.handlers))
    simulate(tmp_path, knock(0, *KNOCKS))
    assert (logs.log.level, logs.log.propagate, list(logs.log.handlers)) == before
    assert caplog.records == []


def test_what_is_open_at_the_end(tmp_path: Path) -> None:
    config = tmp_path / "nfknock.toml"
    config.write_text(DOOR.format(timeout="30s"))
    simulation = Simulation(load(config))
    list(simulation.run([*knock(0, *KNOCKS), *ping(12)]))
    [hole] = simulation.holes
    assert (str(hole.source), simulation.now - AT, hole.closes_at) == (ALICE, 12, AT + 30)


LAMP = """
[doors.lamp]
sequence = ["6101", "6203/udp"]
close_sequence = ["6203/udp", "6101"]
start_command = ["/bin/lamp", "on", "%IP%"]
stop_command = ["/bin/lamp", "off", "%IP%"]
cmd_timeout = "10s"
"""
LIT = [(0, f"{ALICE}: lamp: Stage 1"), (0, f"{ALICE}: lamp: Stage 2"), (0, f"{ALICE}: lamp: OPEN SESAME")]


def test_commands_are_named_and_not_run(tmp_path: Path) -> None:
    on, off = f"lamp: running command: /bin/lamp on {ALICE}", f"lamp: running command: /bin/lamp off {ALICE}"
    said = simulate(tmp_path, knock(0, "6101", "6203/udp"), ping(60), more=LAMP)
    assert said == [*LIT, (0, on), (10, f"{ALICE}: lamp: command timeout"), (10, off)]
    again = simulate(tmp_path, knock(0, "6101", "6203/udp"), knock(6, "6101", "6203/udp"), ping(60), more=LAMP)
    assert again[3:] == [
        (0, on),
        *((6, line) for _at, line in LIT),
        (6, f"{ALICE}: lamp: stop command put off for 10 s"),
        (16, f"{ALICE}: lamp: command timeout"),
        (16, off),
    ]
    shut = simulate(tmp_path, knock(0, "6101", "6203/udp"), knock(6, "6203/udp", "6101"), ping(60), more=LAMP)
    assert [line for line in shut if line[0] == 6 and "tage" not in line[1]] == [
        (6, f"{ALICE}: lamp: CLOSE SESAME"),
        (6, off),
    ]


def test_one_time_sequences_count_once_and_are_not_marked(tmp_path: Path) -> None:
    file = tmp_path / "key.ots"
    file.write_text(" 1001,1002\n 2001,2002\n 3001,3002\n")
    config = tmp_path / "nfknock.toml"
    config.write_text('[doors.key]\none_time_sequences = "key.ots"\none_time_look_ahead = 1\nopen = ["22"]\n')
    simulation = Simulation(load(config), {"key": onetime.unused(file.read_bytes())})
    packets = [*knock(0, "3001", "3002"), *knock(1, "2001", "2002"), *knock(2, "1001", "1002", "2001", "2002")]
    said = [line.text for line in simulation.run([*packets, *knock(3, "3001", "3002")])]
    assert [line for line in said if "OPEN SESAME" in line] == [f"{ALICE}: key: OPEN SESAME"] * 2
    assert "key: one-time sequences: 1 is left; `nfknock sequences` makes new ones, for both ends" in said
    assert any("the last one is used" in line for line in said)
    assert "#" not in file.read_text()
