"""What the daemon says, and how much of it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nfknock.core.decisions import CloseDoor, Command, OpenDoor, SequenceTimeout, StageReached
from nfknock.core.model import Hole, Opening, Port
from nfknock.daemon import logs

SOURCE = ip_address("192.0.2.2")
HOLE = Hole(
    door="ssh", source=SOURCE, opens=(Opening(Port(22)), Opening(Port(53, "udp"))), opened_at=100.0, closes_at=130.0
)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (StageReached("ssh", SOURCE, 1), "192.0.2.2: ssh: Stage 1"),
        (StageReached("ssh", SOURCE, 2, is_closing=True), "192.0.2.2: ssh: closing, stage 2"),
        (OpenDoor("ssh", SOURCE, ()), "192.0.2.2: ssh: OPEN SESAME"),
        (CloseDoor("ssh", SOURCE), "192.0.2.2: ssh: CLOSE SESAME"),
        (SequenceTimeout("ssh", SOURCE, 2), "192.0.2.2: ssh: sequence timeout (stage 2)"),
    ],
)
def test_lines_are_those_of_knockd(command: Command, line: str) -> None:
    assert logs.describe(command) == line


def test_a_hole_has_a_line_when_it_opens_and_one_when_it_closes() -> None:
    assert logs.opened(HOLE, 100.0, is_new=True) == "192.0.2.2: ssh: opened 22/tcp, 53/udp for 30 s"
    assert logs.opened(HOLE, 110.0, is_new=False) == "192.0.2.2: ssh: renewed 22/tcp, 53/udp for 20 s"
    assert logs.closed(HOLE, 130.0) == "192.0.2.2: ssh: closed after 30 s"


def test_a_flood_is_a_few_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nfknock")
    gate = logs.Gate()
    for second in range(100, 130):
        for _ in range(1000):
            gate.say(StageReached("ssh", SOURCE, 1), second)
        gate.summarise(second)
    assert len(caplog.records) < 30 * 6 + 20
    left_out = [int(record.getMessage().split()[0]) for record in caplog.records if "left out" in record.getMessage()]
    assert len(left_out) == 3
    assert sum(left_out) > 20_000


def test_losses_are_said_at_once_and_then_now_and_again(caplog: pytest.LogCaptureFixture) -> None:
    losses = logs.Losses()
    losses.say(0, 1)
    for second in range(1, 32):
        losses.say(second * 100, second)
    assert [int(record.getMessage().split()[0]) for record in caplog.records] == [100, 1000, 1000, 1000]
    losses.say(3100, 100)
    losses.say(7, 200)
    assert caplog.messages[-1] == "7 packets were lost: they came faster than they are read", "of another reader"
    logs.Losses("packets to closed ports").say(3, 0)
    assert caplog.messages[-1] == "3 packets to closed ports were lost: they came faster than they are read"
