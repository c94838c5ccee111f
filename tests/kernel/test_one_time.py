"""One-time sequences: each opens once, whatever happens in between."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.kernel.disk import fill, small_disk
from tests.lab import BASTION4, BASTION6, CLIENT4, NFKNOCK, Daemon, Lab, wait_until

DOOR = """
[doors.ssh]
one_time_sequences = "ssh.ots"
open = ["22/tcp"]
open_timeout = "30s"
"""


def ready(lab: Lab, *lines: str, more: str = "") -> tuple[Daemon, Path]:
    lab.serve(22)
    path = lab.directory / "ssh.ots"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o640)
    lab.configure(DOOR + more)
    lab.nfknock("apply")
    return lab.daemon(), path


def shut(lab: Lab) -> None:
    lab.nfknock("close", "--all")


def left(lab: Lab) -> int:
    return int(json.loads(lab.nfknock("status", "--json").stdout)["daemon"]["one_time_left"]["ssh"])


def sequences(count: int) -> list[list[str]]:
    """Sequences that share no port."""
    return [[str(10000 + 3 * i), f"{20000 - 3 * i}:udp", str(30000 + 3 * i)] for i in range(count)]


@pytest.mark.parametrize("bastion", [BASTION4, BASTION6])
def test_27_a_sequence_opens_once_and_stays_used(lab: Lab, bastion: str) -> None:
    daemon, path = ready(lab, " 1001,2002,3003", " 4004,5005:udp,6006")
    assert left(lab) == 2
    lab.knock(bastion, "1001", "2002", "3003")
    daemon.wait_for("opened 22/tcp for 30 s")
    assert path.read_text() == "#1001,2002,3003\n 4004,5005:udp,6006\n"
    assert path.stat().st_mode & 0o777 == 0o640
    daemon.process.kill()
    daemon.process.wait()
    shut(lab)
    with Daemon(lab.bastion) as heir:
        assert left(lab) == 1
        lab.knock(bastion, "1001", "2002", "3003")
        lab.knock(bastion, "4004", "5005:udp", "6006")
        heir.wait_for("opened 22/tcp for 30 s")
        heir.wait_for("ssh: one-time sequences: the last one is used; the door stays shut")
        assert sum("OPEN SESAME" in line for line in heir.lines) == 1
        assert left(lab) == 0
        shut(lab)
        lab.knock(bastion, "4004", "5005:udp", "6006")
        time.sleep(0.3)
        assert lab.is_shut(bastion, 22)
        # What nobody can open still has a daemon that runs, and a firewall that can be looked at and taken away.
        assert "has no unused sequence any more" in lab.nfknock("apply").stderr
        assert lab.nfknock("check", check=False).returncode == 2


def test_28_the_line_that_was_used_is_the_line_that_is_marked(lab: Lab) -> None:
    daemon, path = ready(lab, "# mine", "", "not,a,sequence", "1001,2002,3003", "\t4004,5005,6006\r")
    lab.knock(BASTION4, "1001", "2002", "3003")
    daemon.wait_for("opened")
    assert path.read_bytes() == b"# mine\n\nnot,a,sequence\n#1001,2002,3003\n\t4004,5005,6006\r\n"
    shut(lab)
    lab.knock(BASTION4, "4004", "5005", "6006")
    daemon.wait_for("opened", count=2)
    assert path.read_bytes() == b"# mine\n\nnot,a,sequence\n#1001,2002,3003\n#4004,5005,6006\r\n"


def test_sequences_that_were_lost_on_the_way_are_stepped_over(lab: Lab) -> None:
    knocks = sequences(10)
    daemon, path = ready(lab, *(f" {','.join(each)}" for each in knocks), more="one_time_look_ahead = 3\n")
    lab.knock(BASTION4, *knocks[4])  # one too far
    lab.knock(BASTION4, *knocks[3])
    daemon.wait_for("opened")
    wait_until(lambda: left(lab) == 6, "the window to move on")
    assert [line[0] for line in path.read_text().splitlines()] == ["#"] * 4 + [" "] * 6
    daemon.wait_for("opened 22/tcp")
    shut(lab)
    # Those that were stepped over are used as well; those that came into sight count.
    lab.knock(BASTION4, *knocks[1])
    wait_until(lambda: str(knocks[7][0]) in lab.rules(), "the new knock ports to be watched")
    lab.knock(BASTION4, *knocks[7])
    daemon.wait_for("opened", count=2)
    daemon.wait_for("ssh: one-time sequences: 2 are left")
    assert sum("OPEN SESAME" in line for line in daemon.lines) == 2


def test_two_that_are_knocked_at_once_both_open_and_are_both_used(lab: Lab) -> None:
    knocks = sequences(3)
    daemon, path = ready(lab, *(f" {','.join(each)}" for each in knocks))
    lab.knock(BASTION4, *knocks[0])
    lab.knock(BASTION6, *knocks[1])
    daemon.wait_for("opened", count=2)
    assert [line[0] for line in path.read_text().splitlines()] == ["#", "#", " "]


def test_on_a_full_disk_nothing_opens_and_nothing_is_marked(lab: Lab) -> None:
    with small_disk(lab.directory / "disk") as disk:
        path = disk / "ssh.ots"
        path.write_text(" 1001,2002,3003\n")
        lab.serve(22)
        lab.configure(DOOR.replace("ssh.ots", str(path)))
        lab.nfknock("apply")
        daemon = lab.daemon()
        fill(disk / "filler")
        lab.knock(BASTION4, "1001", "2002", "3003")
        daemon.wait_for(f"{CLIENT4}: ssh: not opened: marking a used sequence in {path}: no space left on device")
        assert "nfknock hole" not in lab.rules()
        assert path.read_text() == " 1001,2002,3003\n"
        assert sorted(each.name for each in disk.iterdir()) == [".ssh.ots.lock", "filler", "ssh.ots"]
        assert left(lab) == 1
        # There is room again: the same sequence still counts.
        (disk / "filler").unlink()
        lab.knock(BASTION4, "1001", "2002", "3003")
        daemon.wait_for("opened 22/tcp")
        daemon.signal(signal.SIGTERM)
        daemon.process.wait(10)


def _remove(path: Path) -> None:
    path.unlink()


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _exchange(path: Path) -> None:
    path.write_text(" 11,12,13\n")


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (_remove, "no such file or directory"),
        (_make_directory, "is a directory"),
        (_exchange, "has no such unused sequence"),
    ],
)
def test_a_file_that_went_bad_opens_nothing(lab: Lab, break_it: object, reason: str) -> None:
    daemon, path = ready(lab, " 1001,2002,3003", " 1,2,3")
    assert callable(break_it)
    break_it(path)
    lab.knock(BASTION4, "1001", "2002", "3003")
    daemon.wait_for(f"{CLIENT4}: ssh: not opened: ")
    assert reason in next(line for line in daemon.lines if "not opened" in line)
    assert "nfknock hole" not in lab.rules()
    # Put right, it goes on after a reload, as it does after the rotation of sequences.
    if path.is_dir():
        path.rmdir()
    path.write_text(" 4004,5005,6006\n 1,2,3\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    lab.knock(BASTION4, "4004", "5005", "6006")
    daemon.wait_for("opened 22/tcp")


def test_a_used_up_file_shuts_its_own_door_alone(lab: Lab) -> None:
    daemon, path = ready(lab, " 1001,2002,3003", more=SPARE)
    path.write_text("#1001,2002,3003\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reloaded")
    daemon.process.kill()
    daemon.process.wait()
    with Daemon(lab.bastion) as heir:
        lab.knock(BASTION4, "1001", "2002", "3003")
        lab.knock(BASTION4, "6101", "6203:udp")
        heir.wait_for("spare: opened 22/tcp")
        assert not any("ssh: " in line and "OPEN" in line for line in heir.lines)


SPARE = '[doors.spare]\nsequence = ["6101", "6203/udp"]\nopen = ["22/tcp"]\n'


def test_a_sequence_that_stands_twice_opens_once(lab: Lab) -> None:
    daemon, _path = ready(lab, " 1001,2002,3003", " 1001:tcp,2002,3003", " 1,2,3")
    lab.knock(BASTION4, "1001", "2002", "3003")
    daemon.wait_for("opened")
    shut(lab)
    lab.knock(BASTION4, "1001", "2002", "3003")
    lab.knock(BASTION6, "1", "2", "3")
    daemon.wait_for("opened", count=2)
    assert CLIENT4 not in lab.rules()


def test_a_closing_does_not_overtake_an_opening_that_is_being_marked(lab: Lab) -> None:
    more = 'close_sequence = ["6103", "6104"]\n'.replace("open_timeout", "")
    daemon, path = ready(lab, " 1001,2002,3003", " 1,2,3", more=more)
    lock = path.with_name(".ssh.ots.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lab.knock(BASTION4, "1001", "2002", "3003")
        lab.knock(BASTION4, "6103", "6104")
        daemon.wait_for("CLOSE SESAME")
    daemon.wait_for("closed after")
    assert "nfknock hole" not in lab.rules()


def test_a_lock_that_is_held_is_said_and_holds_nothing_else_up(lab: Lab) -> None:
    daemon, path = ready(lab, " 1001,2002,3003", more=SPARE)
    with path.with_name(".ssh.ots.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lab.knock(BASTION4, "1001", "2002", "3003")
        lab.knock(BASTION4, "6101", "6203:udp")
        daemon.wait_for("spare: opened 22/tcp", within=3)
        daemon.wait_for(f"{CLIENT4}: ssh: not opened: marking a used sequence in {path}: another program is marking")


KILLS = 50 if "NFKNOCK_TEST_ALL" in os.environ else 12


def test_kill_9_at_the_moment_of_a_knock_spends_one_sequence_at_most(lab: Lab) -> None:
    """No sequence ever opens twice, and each kill costs the one in flight at most."""
    knocks = sequences(KILLS + 1)
    daemon, path = ready(lab, *(f" {','.join(each)}" for each in knocks))
    chance = random.Random(9)
    opened: set[str] = set()
    for _ in range(KILLS):
        before = used(path)
        at = len(before)
        lab.knock(BASTION4, *knocks[at])
        # From before the last knock is read until after the hole stands.
        time.sleep(chance.uniform(0, 0.012))
        daemon.process.kill()
        daemon.process.wait()
        after = used(path)
        assert after[: len(before)] == before
        assert len(after) <= len(before) + 1
        if "nfknock hole" in lab.rules():
            assert len(after) == len(before) + 1, "opened for a sequence that is not used"
            assert after[-1] not in opened, "opened twice"
            opened.add(after[-1])
            shut(lab)
        daemon = lab.daemon()
        if after:
            # What was used is sent again, by somebody who listened, with a knock behind it that shows that it was read.
            lab.knock(BASTION4, *knocks[len(after) - 1])
            lab.knock(BASTION6, knocks[len(after)][0])
            daemon.wait_for("2001:db8::2: ssh: Stage 1")
            assert "nfknock hole" not in lab.rules(), "a used sequence opened"
            assert not [line for line in daemon.lines if "OPEN SESAME" in line]


def used(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("#")]


def test_the_client_has_the_same_file_and_both_stay_in_step(lab: Lab) -> None:
    knocks = sequences(4)
    daemon, path = ready(lab, *(f" {','.join(each)}" for each in knocks))
    copy = lab.directory / "client.ots"
    copy.write_text(path.read_text())
    for count in (1, 2):
        lab.knock("--one-time", str(copy), BASTION4)
        daemon.wait_for("opened 22/tcp", count=count)
        shut(lab)
    # One is lost on the way: knocked where nobody listens.
    lab.knock("--one-time", str(copy), "192.0.2.99")
    done = lab.client.run(*NFKNOCK, "connect", BASTION4, "22", "--one-time", str(copy), stdin="hello\n")
    assert done.stdout == "hello\n"
    assert used(path) == used(copy) == [f"#{','.join(each)}" for each in knocks]
