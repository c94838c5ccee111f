"""Doors that run commands: the real daemon, real knocks, real programs."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.lab import BASTION4, BASTION6, CLIENT4, CLIENT6, STRANGER4, Daemon, Lab, wait_until

KNOCKS = ("7101:tcp", "8203:udp", "9307:tcp")
CLOSING = ("9307:tcp", "8203:udp", "7101:tcp")


class Bell:
    """A door that writes down what it runs."""

    def __init__(self, lab: Lab, keys: str = "", *, start: str = "", more: str = "") -> None:
        self.lab = lab
        self.path = lab.directory / "rung"
        self.path.touch()
        lab.configure(
            f"""
[doors.bell]
sequence = ["7101", "8203/udp", "9307"]
start_command = {self.command("start", start)}
{keys.replace("STOP", self.command("stop"))}
{more}
"""
        )
        lab.nfknock("apply")
        self.daemon = lab.daemon()

    def command(self, word: str, then: str = "") -> str:
        """Return an argument list, in TOML, that writes down a word, the source and the environment."""
        script = f'echo "{word} $1 $NFKNOCK_DOOR $NFKNOCK_SOURCE $NFKNOCK_FAMILY" >>{self.path}; {then}'
        return f"""["/bin/sh", "-c", '''{script}''', "sh", "%IP%"]"""

    @property
    def rung(self) -> list[str]:
        return [" ".join(line.split()[:2]) for line in self.path.read_text().splitlines()]

    def wait_for(self, *rung: str, within: float = 20) -> None:
        wait_until(lambda: self.rung == list(rung), f"{rung}, not {self.rung}; {self.daemon.lines}", within=within)

    def knock(self, address: str = BASTION4, knocks: tuple[str, ...] = KNOCKS) -> None:
        self.lab.knock(address, *knocks)


@pytest.mark.parametrize(("bastion", "client", "family"), [(BASTION4, CLIENT4, "ipv4"), (BASTION6, CLIENT6, "ipv6")])
def test_start_and_stop_are_run_for_the_source(lab: Lab, bastion: str, client: str, family: str) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "1s"', start="echo well; echo bad >&2; exit 3")
    bell.knock(bastion)
    bell.wait_for(f"start {client}", f"stop {client}")
    assert f"start {client} bell {client} {family}" in bell.path.read_text()
    bell.daemon.wait_for("bell: command returned non-zero status code (3)")
    bell.daemon.wait_for("bell: running command: /bin/sh -c", count=2)
    lines = bell.daemon.lines
    assert f"{client}: bell: OPEN SESAME" in lines
    assert sum(line.startswith("bell: running command: /bin/sh -c") for line in lines) == 2
    assert "bell: command says: well" in lines
    assert "bell: command says: bad" in lines
    assert lines.index("bell: command returned non-zero status code (3)") < lines.index(
        f"{client}: bell: command timeout"
    )
    assert "nfknock hole" not in lab.rules()


@pytest.mark.parametrize(
    ("keys", "rung"),
    [
        ("", [f"start {CLIENT4}", f"start {CLIENT6}"]),
        ("start_command_6 = []", [f"start {CLIENT4}"]),
        (
            'start_command_6 = ["/bin/sh", "-c", "echo six $1 >>RUNG", "sh", "%IP%"]',
            [f"start {CLIENT4}", f"six {CLIENT6}"],
        ),
    ],
)
def test_24_ipv6_has_its_own_command_or_the_other_one(lab: Lab, keys: str, rung: list[str]) -> None:
    bell = Bell(lab, keys.replace("RUNG", str(lab.directory / "rung")))
    bell.knock(BASTION4)
    bell.wait_for(rung[0])
    bell.knock(BASTION6)
    bell.daemon.wait_for("OPEN SESAME", count=2)
    bell.wait_for(*rung)


def test_25_the_stop_command_runs_though_the_start_command_cannot(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = 1\nstart_command_6 = ["/no/such/program"]')
    bell.knock(BASTION6)
    bell.daemon.wait_for("bell: command cannot be run: /no/such/program: no such file or directory")
    bell.wait_for(f"stop {CLIENT6}")


def test_26_opened_twice_within_its_time_is_one_start_and_one_stop(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "3s"')
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    time.sleep(1.5)
    bell.knock()
    bell.daemon.wait_for(f"{CLIENT4}: bell: stop command put off for 3 s")
    put_off_at = time.monotonic()
    bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")
    assert time.monotonic() - put_off_at > 2.5
    bell.knock()
    bell.wait_for(*[f"start {CLIENT4}", f"stop {CLIENT4}"] * 2)


def test_two_openings_at_once_are_one_start_and_one_stop(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "2s"')
    rounds = 5
    stop = f"stop {CLIENT4}"
    for count in range(1, rounds + 1):
        stops = bell.rung.count(stop)
        # Two people behind one address, step by step: both get to the end within the same millisecond.
        lab.knock(BASTION4, *[each for knock in KNOCKS for each in (knock, knock)])
        bell.daemon.wait_for("OPEN SESAME", count=2 * count)
        wait_until(lambda stops=stops: bell.rung.count(stop) > stops and not notes(lab), "the stop")  # type: ignore[misc]
    time.sleep(2.5)
    # On a busy machine the second may come when the first is over; then it is a start of its own.
    starts = bell.rung.count(f"start {CLIENT4}")
    assert rounds <= starts <= 2 * rounds
    assert bell.rung.count(stop) == starts
    assert notes(lab) == []


def notes(lab: Lab) -> list[str]:
    return [path.name for path in Path(lab.environment["NFKNOCK_STATE_DIR"]).glob("stop-*")]


def test_the_closing_sequence_stops_at_once_and_once(lab: Lab) -> None:
    keys = 'stop_command = STOP\ncmd_timeout = 0\nclose_sequence = ["9307", "8203/udp", "7101"]'
    bell = Bell(lab, keys)
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    bell.knock(knocks=CLOSING)
    bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")
    bell.knock(knocks=CLOSING)
    bell.daemon.wait_for("CLOSE SESAME", count=2)
    time.sleep(0.3)
    assert bell.rung == [f"start {CLIENT4}", f"stop {CLIENT4}"]


def test_what_a_killed_daemon_owes_is_stopped_on_time_by_the_next(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "4s"')
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    started_at = time.monotonic()
    bell.daemon.process.kill()
    bell.daemon.process.wait()
    with Daemon(lab.bastion) as heir:
        heir.wait_for("adopted 1 stop command")
        bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")
        assert time.monotonic() - started_at > 3
        heir.signal(signal.SIGTERM)
        assert heir.process.wait(10) == 0
    with Daemon(lab.bastion) as third:
        assert third.lines == ["ready"]
    assert bell.rung == [f"start {CLIENT4}", f"stop {CLIENT4}"]


def test_what_was_due_while_there_was_no_daemon_is_made_up_for(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "1s"')
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    bell.daemon.process.kill()
    bell.daemon.process.wait()
    time.sleep(1.5)
    # The door may be gone from the configuration by then.
    lab.configure('[doors.other]\nsequence = ["7101", "8203"]\nopen = ["22"]\n')
    with Daemon(lab.bastion):
        bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")


def test_a_daemon_that_is_told_to_end_stops_what_it_started(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "1h"')
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    bell.daemon.signal(signal.SIGTERM)
    assert bell.daemon.process.wait(20) == 0
    assert bell.rung == [f"start {CLIENT4}", f"stop {CLIENT4}"]
    assert notes(lab) == []
    with Daemon(lab.bastion) as heir:
        assert heir.lines == ["ready"]


def test_a_door_without_an_end_outlives_the_daemon(lab: Lab) -> None:
    keys = 'stop_command = STOP\ncmd_timeout = 0\nclose_sequence = ["9307", "8203/udp", "7101"]'
    bell = Bell(lab, keys)
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    bell.daemon.signal(signal.SIGTERM)
    assert bell.daemon.process.wait(20) == 0
    with Daemon(lab.bastion) as heir:
        heir.wait_for("adopted 1 stop command")
        assert bell.rung == [f"start {CLIENT4}"]
        bell.knock(knocks=CLOSING)
        bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")


SSH = """
[doors.ssh]
sequence = ["6101", "6203/udp"]
open = ["22/tcp"]
"""


def test_a_command_that_hangs_is_ended_and_holds_up_nothing(lab: Lab) -> None:
    lab.serve(22)
    bell = Bell(lab, 'run_timeout = "3s"', start="trap '' TERM; while :; do sleep 1; done", more=SSH)
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    lab.knock(BASTION4, "6101", "6203:udp")
    bell.daemon.wait_for("ssh: opened", within=2)
    assert lab.reaches(BASTION4, 22)
    bell.daemon.wait_for("bell: command did not end within 3 s and is ended")
    # It does not listen to SIGTERM.
    bell.daemon.wait_for("bell: command was ended by signal 9", within=20)


def test_the_children_of_a_command_that_is_ended_end_too(lab: Lab) -> None:
    bell = Bell(
        lab, 'run_timeout = "1s"', start=f"(trap '' TERM; sleep 3; echo survived >>{lab.directory}/rung) & wait"
    )
    bell.knock()
    bell.daemon.wait_for("bell: command was ended by signal 15")
    time.sleep(3.5)
    assert bell.rung == [f"start {CLIENT4}"]


def test_a_stop_command_that_runs_when_the_daemon_goes_is_not_lost(lab: Lab) -> None:
    slow = '["/bin/sh", "-c", "sleep 2; echo now; echo stopped >>RUNG"]'.replace("RUNG", str(lab.directory / "rung"))
    bell = Bell(lab, f'stop_command = {slow}\ncmd_timeout = "1s"')
    bell.knock()
    bell.daemon.wait_for("command timeout")
    bell.daemon.process.kill()
    bell.daemon.process.wait()
    with Daemon(lab.bastion) as heir:
        heir.wait_for("adopted 1 stop command")
        heir.signal(signal.SIGTERM)
        assert heir.process.wait(20) == 0
    assert bell.rung[0] == f"start {CLIENT4}"
    assert set(bell.rung[1:]) == {"stopped"}
    assert notes(lab) == []


def test_what_only_a_lost_closing_sequence_would_stop_is_stopped(lab: Lab) -> None:
    keys = 'stop_command = STOP\ncmd_timeout = 0\nclose_sequence = ["9307", "8203/udp", "7101"]'
    bell = Bell(lab, keys)
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    lab.configure('[doors.other]\nsequence = ["7101", "8203"]\nopen = ["22"]\n')
    bell.daemon.signal(signal.SIGHUP)
    bell.daemon.wait_for("nothing can stop this any more, so it is stopped now")
    bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")


def test_a_door_has_four_commands_at_once_and_others_have_theirs(lab: Lab) -> None:
    other = '[doors.other]\nsequence = ["6101", "6203/udp"]\nstart_command = ["/bin/echo", "me too"]\n'
    end = lab.directory / "end"
    bell = Bell(lab, start=f"until [ -e {end} ]; do sleep 0.1; done", more=other)
    for _ in range(6):
        bell.knock()
    bell.daemon.wait_for("OPEN SESAME", count=6)
    lab.knock(BASTION4, "6101", "6203:udp")
    bell.daemon.wait_for("other: command says: me too")
    bell.wait_for(*[f"start {CLIENT4}"] * 4)
    end.touch()
    bell.wait_for(*[f"start {CLIENT4}"] * 6)


def test_a_command_that_prints_without_end_takes_no_time_from_knocks(lab: Lab) -> None:
    lab.serve(22)
    bell = Bell(lab, 'run_timeout = "4s"', start="exec yes", more=SSH)
    for _ in range(4):
        bell.knock()
    bell.daemon.wait_for("OPEN SESAME", count=4)
    asked_at = time.monotonic()
    lab.knock(BASTION4, "6101", "6203:udp")
    bell.daemon.wait_for("ssh: opened", within=2)
    assert time.monotonic() - asked_at < 2
    bell.daemon.wait_for("bell: command says: and more,", count=4, within=20)
    assert sum("command says: y" in line for line in bell.daemon.lines) == 4 * 20


def test_where_no_stop_command_can_be_noted_none_is_owed(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "1s"')
    state = Path(lab.environment["NFKNOCK_STATE_DIR"])
    shutil.rmtree(state)
    state.touch()
    bell.knock()
    bell.daemon.wait_for(f"{CLIENT4}: bell: command not run: its stop command cannot be noted: not a directory")
    bell.daemon.signal(signal.SIGTERM)
    assert bell.daemon.process.wait(10) == 0
    done = lab.nfknock("run", check=False)
    assert done.returncode == 1
    assert f"noting stop commands in {state}: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert bell.rung == []


def test_a_note_that_somebody_else_could_write_is_not_run(lab: Lab) -> None:
    bell = Bell(lab, 'stop_command = STOP\ncmd_timeout = "1s"')
    bell.knock()
    bell.wait_for(f"start {CLIENT4}")
    bell.daemon.process.kill()
    bell.daemon.process.wait()
    [note] = Path(lab.environment["NFKNOCK_STATE_DIR"]).glob("stop-*")
    note.chmod(0o666)
    with Daemon(lab.bastion) as heir:
        heir.wait_for("somebody else can write it")
        time.sleep(1.2)
        assert bell.rung == [f"start {CLIENT4}"]


def test_a_door_may_open_and_run(lab: Lab) -> None:
    lab.serve(22)
    bell = Bell(lab, 'stop_command = STOP\nopen = ["22/tcp"]\nopen_timeout = "2s"')
    bell.knock()
    bell.daemon.wait_for("opened 22/tcp for 2 s")
    assert lab.reaches(BASTION4, 22)
    assert lab.is_shut(BASTION4, 22, source=STRANGER4)
    bell.wait_for(f"start {CLIENT4}", f"stop {CLIENT4}")
    bell.daemon.wait_for("closed after 2 s")
