"""The process that takes packets apart: what it may do, which is nothing, and what becomes of knocks when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.kernel.test_knocking import DOORS, KNOCKS, ready, reload, status
from tests.lab import BASTION4, BASTION6, Daemon, Lab, is_root, wait_until
from tests.setting import Setting, only_for

NOBODY = 65534
NONE = "0" * 16
WORD = "a-word-that-stands-in-the-configuration"
LOST = "the process that takes packets apart"


@pytest.fixture
def setting() -> Setting:
    return Setting(reader="nflog")


def children(of: int) -> dict[int, str]:
    """Which processes are a process's own, with their states; Z is a zombie."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == of:
                found[int(path.parent.name)] = state
    return found


def readers(daemon: Daemon) -> list[int]:
    """Who reads for a daemon: knocks and strays."""
    return [pid for pid in children(daemon.process.pid) if _name(pid) == "nfknock-reader"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(_name, pids)), f"the end of {pids}")


def fields(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def memory(pid: int) -> bytes:
    """Return whatever a process may have written."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(each, 16) for each in where.split("-"))
                with contextlib.suppress(OSError):
                    file.seek(start)
                    found.append(file.read(end - start))
    return b"".join(found)


def test_it_may_do_nothing(lab: Lab) -> None:
    daemon = ready(lab)
    pids = readers(daemon)
    assert len(pids) == 2
    for pid in pids:
        has = fields(pid)
        assert [has[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")] == [NONE] * 5
        assert has["NoNewPrivs"] == "1"
        if is_root():
            assert set(has["Uid"].split() + has["Gid"].split()) == {str(NOBODY)}
            assert has["Groups"] == ""
        limits = Path(f"/proc/{pid}/limits").read_text()
        for limit in ("Max open files", "Max processes", "Max file size", "Max core file size"):
            [line] = [line for line in limits.splitlines() if line.startswith(limit)]
            assert line.removeprefix(limit).split()[:2] == ["0", "0"]
        # What it holds is what it was given; and its memory is for root's eyes alone.
        held = sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
        assert held[:3] == ["/dev/null"] * 3
        assert [each.partition(":")[0] for each in held[3:]] == ["socket", "socket"]
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
        # Python itself puts the locale there.
        assert Path(f"/proc/{pid}/environ").read_bytes() in (b"", b"LC_CTYPE=C.UTF-8\0")


def test_nothing_of_the_daemon_s_is_in_its_memory(lab: Lab) -> None:
    daemon = ready(lab, more=f'start_command = ["true", "{WORD}"]\n')
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    assert WORD.encode() in memory(daemon.process.pid)
    for pid in readers(daemon):
        found = memory(pid)
        # A word of its own is there, so that it is known that it would be seen.
        assert b"nfknock.apart.records" in found
        assert WORD.encode() not in found
        assert str(lab.config).encode() not in found
        assert WORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


@only_for("iptables", "ipset")
def test_with_nfqueue_there_is_none(lab: Lab) -> None:
    """The kernel asks for CAP_NET_ADMIN with every verdict."""
    lab.setting = Setting(reader="nfqueue")
    daemon = ready(lab)
    assert children(daemon.process.pid) == {}
    lab.setting = Setting(reader="nflog")
    reload(lab, daemon, DOORS.format(timeout="30s"), "reloaded")
    assert len(readers(daemon)) == 2
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    lab.setting = Setting(reader="nfqueue")
    reload(lab, daemon, DOORS.format(timeout="30s"), "reloaded")
    daemon.wait_for("reloaded", count=2)
    assert children(daemon.process.pid) == {}


def test_one_that_is_killed_is_replaced_at_once(lab: Lab) -> None:
    daemon = ready(lab)
    lab.knock(BASTION4, *KNOCKS[:2])
    daemon.wait_for("Stage 2")
    before = readers(daemon)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    daemon.wait_for(f"{LOST} was ended by SIGKILL; another one takes its place", count=2)
    # Nobody's knocks were forgotten: they are not followed there.
    lab.knock(BASTION4, KNOCKS[2])
    daemon.wait_for("opened")
    assert lab.reaches(BASTION4, 22)
    wait_until(lambda: len(readers(daemon)) == 2, "two others")
    assert not set(before) & set(children(daemon.process.pid)), "not even a zombie"
    assert status(lab)["daemon"]["lost"] == 0


@pytest.mark.long
def test_one_that_hangs_is_replaced(lab: Lab) -> None:
    daemon = ready(lab)
    for pid in readers(daemon):
        os.kill(pid, signal.SIGSTOP)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for(f"{LOST} did not answer for 10 s; another one takes its place", within=40)
    lab.knock(BASTION6, *KNOCKS)
    daemon.wait_for("opened", within=40)


def test_signals_for_the_daemon_do_not_end_it(lab: Lab) -> None:
    """A terminal and many a supervisor send theirs to all."""
    daemon = ready(lab)
    before = readers(daemon)
    for pid in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")
    assert readers(daemon) == before


def test_it_ends_with_the_daemon(lab: Lab) -> None:
    """However that ends, even while what reads for it is stopped, and the group is free for the next one."""
    daemon = ready(lab)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL):
        pids = readers(daemon)
        assert len(pids) == 2
        if number == signal.SIGKILL:
            os.kill(pids[0], signal.SIGSTOP)
        daemon.signal(number)
        daemon.process.wait(20)
        daemon = lab.daemon()
        wait_until_gone(pids)
    lab.knock(BASTION4, *KNOCKS)
    daemon.wait_for("opened")


def test_too_many_that_are_lost_end_the_daemon(lab: Lab) -> None:
    """Whoever supervises it starts it again. Meanwhile nothing opens."""
    daemon = ready(lab)
    for count in range(1, 7):
        wait_until(lambda: len(readers(daemon)) == 2, "two of them")
        os.kill(max(readers(daemon)), signal.SIGKILL)
        if count == 6:
            break
        daemon.wait_for("another one takes its place", count=count)
    assert daemon.process.wait(20) == 1
    daemon.wait_for("nfknock: reading NFLOG group")
    assert daemon.lines[-1].endswith(f"{LOST} was lost too often within a minute; at last it was ended by SIGKILL")
    lab.knock(BASTION4, *KNOCKS)
    assert lab.is_shut(BASTION4, 22)
