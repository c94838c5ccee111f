"""Doors that run commands or have one-time sequences: what their keys mean, and what is wrong with them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from nfknock.config import Config, load
from nfknock.config.doors import Tolerated
from nfknock.core.model import Commands, Door, Port
from nfknock.errors import ConfigError

SEQUENCE = 'sequence = ["7101", "8203/udp", "9307"]\n'
V4, V6 = ip_address("192.0.2.2"), ip_address("2001:db8::2")


def read(tmp_path: Path, keys: str, *, tolerates: Tolerated = "nothing") -> Config:
    path = tmp_path / "nfknock.toml"
    path.write_text(f"[doors.ssh]\n{keys}")
    return load(path, tolerates=tolerates)


def door(tmp_path: Path, keys: str) -> Door:
    [made] = read(tmp_path, keys).doors
    return made


def commands(tmp_path: Path, keys: str) -> Commands:
    made = door(tmp_path, SEQUENCE + keys).commands
    assert made is not None
    return made


def test_a_door_that_only_runs_something(tmp_path: Path) -> None:
    made = commands(
        tmp_path, 'start_command = ["/bin/tell", "in %IP%", "%IP%/32"]\nstop_command = ["/bin/tell", "out"]'
    )
    assert made.start_for(V4) == ("/bin/tell", "in 192.0.2.2", "192.0.2.2/32")
    assert made.start_for(V6) == ("/bin/tell", "in 2001:db8::2", "2001:db8::2/32")
    assert made.stop_for(V4) == ("/bin/tell", "out")
    assert (made.cmd_timeout, made.run_timeout) == (10.0, 60.0)


def test_ipv6_has_commands_of_its_own(tmp_path: Path) -> None:
    keys = 'start_command = ["a"]\nstart_command_6 = ["b", "%IP%"]\nstop_command = ["c"]\nstop_command_6 = []'
    made = commands(tmp_path, keys)
    assert (made.start_for(V4), made.start_for(V6)) == (("a",), ("b", "2001:db8::2"))
    assert (made.stop_for(V4), made.stop_for(V6)) == (("c",), ())


def test_a_door_that_runs_nothing_may_say_so(tmp_path: Path) -> None:
    assert commands(tmp_path, "start_command = []").start_for(V4) == ()


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ("", 10),
        ('cmd_timeout = "2m"', 120),
        ("cmd_timeout = 0", 0),
        ('cmd_timeout = 0\nclose_sequence = ["1", "2"]', None),
        ('close_sequence = ["1", "2"]', 10),
        ('open = ["22"]\nopen_timeout = 0\ncmd_timeout = 7', 7),
        ('open = ["22"]\nopen_timeout = "1h"', 3600),
        ('open = ["22"]', 30),
        ('open = ["22"]\nopen_timeout = 0\nclose_sequence = ["1", "2"]', None),
        ('open = ["22"]\nopen_timeout = "1h"\ncmd_timeout = 5', 5),
    ],
)
def test_what_goes_with_a_hole_ends_with_it(tmp_path: Path, keys: str, seconds: float | None) -> None:
    assert commands(tmp_path, f'stop_command = ["a"]\n{keys}').cmd_timeout == seconds


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (SEQUENCE, "doors.ssh: the key 'open' is missing, or a start_command"),
        ('start_command = ["a"]\n', "doors.ssh: the key 'sequence' is missing"),
        (SEQUENCE + 'start_command = "a b"', "doors.ssh.start_command: expected array, got str"),
        (SEQUENCE + 'command = ["a"]', "doors.ssh.command: unknown key; did you mean 'start_command'?"),
        (SEQUENCE + 'start_command = ["", "x"]', "doors.ssh.start_command: the program has no name; write []"),
        (SEQUENCE + 'stop_command_6 = ["a\\u0000"]', "doors.ssh.stop_command_6: an argument cannot have a NUL byte"),
        (SEQUENCE + 'stop_command = ["a"]\ncmd_timeout = -1', "doors.ssh.cmd_timeout: -1 is not a duration"),
        (SEQUENCE + 'start_command = ["a"]\ncmd_timeout = 5', "doors.ssh.cmd_timeout: there is no stop_command"),
        (SEQUENCE + 'start_command = ["a"]\nopen_timeout = 5', "doors.ssh.open_timeout: this door opens no port"),
        (
            SEQUENCE + 'open = ["22"]\nopen_timeout = 0\nstop_command = ["a"]',
            "doors.ssh: the key 'cmd_timeout' is missing: this door never closes by itself",
        ),
        (SEQUENCE + 'start_command = ["a"]\nrun_timeout = 0', "doors.ssh.run_timeout: 0 s is out of range (0.1 s to"),
        (SEQUENCE + 'open = ["22"]\ncmd_timeout = 5', "doors.ssh.cmd_timeout: there is no command here"),
        (SEQUENCE + 'open = []\nstart_command = ["a"]', "doors.ssh.open: is empty"),
        (SEQUENCE + 'open = ["22"]\none_time_sequences = "x"', "doors.ssh.one_time_sequences: there is a sequence"),
        (SEQUENCE + 'open = ["22"]\none_time_look_ahead = 1', "doors.ssh.one_time_look_ahead: there are no one_time"),
        ('open = ["22"]\none_time_sequences = ""', "doors.ssh.one_time_sequences: is empty; it names a file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, keys)
    assert message in str(caught.value)
    assert str(caught.value).count("doors.ssh") == 1


ONE_TIME = 'open = ["22"]\none_time_sequences = "ssh.ots"\n'


def test_a_file_of_one_time_sequences_is_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ssh.ots").write_text("#1,2,3\n 4,5,6\n 7,8:udp,9\n 10,11,12\n")
    made = door(tmp_path, ONE_TIME + "one_time_look_ahead = 1").one_time
    assert made is not None
    assert made.path == str(tmp_path / "ssh.ots")
    assert made.window == ((Port(4), Port(5), Port(6)), (Port(7), Port(8, "udp"), Port(9)))
    assert made.left == 3


@pytest.mark.parametrize("look_ahead", [-1, 101])
def test_how_far_to_look_ahead(tmp_path: Path, look_ahead: int) -> None:
    (tmp_path / "ssh.ots").write_text(" 4,5,6\n")
    with pytest.raises(ConfigError, match=rf"one_time_look_ahead: {look_ahead} is out of range \(0 to 100\)"):
        read(tmp_path, ONE_TIME + f"one_time_look_ahead = {look_ahead}")


def _nothing(path: Path) -> None:
    """Leave it missing."""


def _used_up(path: Path) -> None:
    path.write_text("#1,2,3\n\n")


def _directory(path: Path) -> None:
    path.mkdir()


def _huge(path: Path) -> None:
    path.write_bytes(b" 1,2,3\n" * 200_000)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_nothing, "reading {path}: no such file or directory"),
        (_directory, "reading {path}: is a directory"),
        (_huge, "reading {path}: file too large"),
        (_used_up, "{path} has no unused sequence any more"),
    ],
)
def test_11_a_file_that_is_missing_unreadable_or_used_up(tmp_path: Path, make: object, reason: str) -> None:
    assert callable(make)
    make(tmp_path / "ssh.ots")
    message = "doors.ssh.one_time_sequences: " + reason.format(path=tmp_path / "ssh.ots")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, ONE_TIME)
    assert message in str(caught.value)
    tolerated = read(tmp_path, ONE_TIME, tolerates="anything")
    assert message in tolerated.warnings[0]
    assert tolerated.warnings[0].endswith("; the door stays shut")
    assert tolerated.doors[0].sequences == ()
    assert tolerated.plan.knock_ports == ()


def test_a_used_up_file_shuts_its_door_alone_where_that_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "ssh.ots").write_text("#1,2,3\n 1,2,3\n")
    keys = ONE_TIME + '[doors.web]\nsequence = ["1", "2"]\nopen = ["80"]\n'
    tolerated = read(tmp_path, keys, tolerates="used up")
    assert [door.name for door in tolerated.doors if door.sequences] == ["web"]
    (tmp_path / "ssh.ots").unlink()
    with pytest.raises(ConfigError):
        read(tmp_path, keys, tolerates="used up")


def test_two_doors_cannot_have_one_file(tmp_path: Path) -> None:
    (tmp_path / "ssh.ots").write_text(" 4,5,6\n")
    with pytest.raises(ConfigError, match=r"doors\.web\.one_time_sequences: doors\.ssh has this file already"):
        read(tmp_path, ONE_TIME + "[doors.web]\n" + ONE_TIME)


def test_where_the_log_goes(tmp_path: Path) -> None:
    config = read(tmp_path, SEQUENCE + 'open = ["22"]\n[log]\nsyslog = true\nfile = "knocks.log"\n')
    assert (config.log.syslog, config.log.file) == (True, tmp_path / "knocks.log")
    assert read(tmp_path, SEQUENCE + 'open = ["22"]\n').log.file is None


def opens(tmp_path: Path, entries: str) -> Config:
    return read(tmp_path, f"{SEQUENCE}open = [{entries}]")


def test_a_port_on_a_host_behind(tmp_path: Path) -> None:
    entries = '{ port = 5432, to = "::ffff:10.0.0.5" }, "22", { port = "53/udp", to = "2001:db8:1::5" }, 22'
    config = opens(tmp_path, entries)
    [made] = config.doors
    assert [str(opening) for opening in made.opens] == ["5432/tcp to 10.0.0.5", "22/tcp", "53/udp to 2001:db8:1::5"]
    assert [str(opening) for opening in made.opens_for(V4)] == ["22/tcp", "5432/tcp to 10.0.0.5"]
    assert [str(opening) for opening in made.opens_for(V6)] == ["22/tcp", "53/udp to 2001:db8:1::5"]
    assert [str(opening) for opening in config.plan.forwarded] == ["53/udp to 2001:db8:1::5", "5432/tcp to 10.0.0.5"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{ port = 5432 }", "doors.ssh.open[0]: the key 'to' is missing"),
        ('{ to = "10.0.0.5" }', "doors.ssh.open[0]: the key 'port' is missing"),
        ('{ port = 1, to = "10.0.0.5", form = 1 }', "doors.ssh.open[0].form: unknown key; known are port, to"),
        ('{ port = 1.5, to = "10.0.0.5" }', "doors.ssh.open[0].port: expected int | str, got float"),
        ("{ port = 1, to = 5 }", "doors.ssh.open[0].to: expected str, got int"),
        ('{ port = 0, to = "10.0.0.5" }', "doors.ssh.open[0].port: port 0 is out of range"),
        ('{ port = 1, to = "10.0.0.0/24" }', "doors.ssh.open[0].to: '10.0.0.0/24' does not appear to be"),
        ('{ port = 1, to = "db.example" }', "doors.ssh.open[0].to: 'db.example' does not appear to be"),
        ('{ port = 1, to = "fe80::1%eth0" }', "doors.ssh.open[0].to: 'fe80::1%eth0' has a zone"),
        *(
            (f'{{ port = 1, to = "{address}" }}', f"doors.ssh.open[0].to: '{address}' is not the address of a host")
            for address in ("127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255")
        ),
        ("true", "doors.ssh.open[0]: expected int | str | object, got bool"),
    ],
)
def test_what_is_wrong_with_a_port_on_a_host_behind(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opens(tmp_path, entry)
    assert message in str(caught.value)
