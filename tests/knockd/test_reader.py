"""The vectors of reading a knockd.conf, each with its number, and what surprises a parser."""

from __future__ import annotations

import pytest

from nfknock.core.model import LONGEST_SEQUENCE
from nfknock.knockd import KnockdError, convert, looks_like_knockd
from tests.knockd.files import KNOCKS, TIMED_TUTORIAL, TUTORIAL, checked, config, door, doors_of, import_door, notes


def error_of(text: str | bytes) -> str:
    with pytest.raises(KnockdError) as caught:
        convert(text if isinstance(text, bytes) else text.encode())
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Options]\nlogfile=x\n", "line 1: [Options] is a door without a sequence; the options of knockd stand"),
        ("[Option]\nUseSyslog\n[a]\nsequence = 1\n", "line 1: [Option] is a door without a sequence"),
        ("sequence = 7000\n[a]\n", "line 1: `sequence = 7000` stands before the first [section]"),
        ("\n[]\n", "line 2: [] is a section without a name"),
    ],
)
def test_vector_1_sections(text: str, message: str) -> None:
    assert error_of(text).startswith(message)


def test_vector_2_use_syslog_has_no_value() -> None:
    assert error_of("[options]\nUseSyslog = yes\n").startswith("line 2: UseSyslog takes no value")
    conversion = convert(f"[options]\nUSESYSLOG\n{door()}".encode())
    assert checked(conversion.text).log.syslog
    assert checked(convert(config(door("usesyslog"))).text).log.syslog, "accepted in any section"
    assert not checked(convert(config(door())).text).log.syslog


def test_vector_3_a_door_needs_a_sequence_and_no_command() -> None:
    assert error_of("[options]\n[ssh]\ncommand = a\n") == "line 2: [ssh] is a door without a sequence"
    conversion = convert(config(door()))
    assert doors_of(conversion)["ssh"]["start_command"] == []
    assert checked(conversion.text).doors[0].commands is not None
    assert notes(conversion) == ["3 kept: no command: the door runs nothing and logs its knocks alone"]


@pytest.mark.parametrize(
    "value",
    ["", "7000,,8000", "abc", "-1", "7000:", "7000:sctp", "70000", "0", "7000/udp", "7000 8000", "7000:tcp:udp", "1.5"],
)
def test_vector_4_what_is_no_sequence(value: str) -> None:
    assert error_of(config(door(sequence=value))).startswith("line 4: sequence: ")


def test_vector_4_how_long_a_sequence_may_be() -> None:
    longest = ",".join(["65535"] * LONGEST_SEQUENCE)
    assert len(doors_of(convert(config(door(sequence=longest))))["ssh"]["sequence"]) == LONGEST_SEQUENCE
    assert error_of(config(door(sequence=longest + ",1"))) == "line 4: sequence: a sequence has at most 32 knocks"


def test_vector_5_case_and_blanks_in_a_sequence() -> None:
    made = doors_of(convert(config(door(sequence="7000:UDP, 8000 : tcp"))))["ssh"]
    assert made["sequence"] == ["7000/udp", "8000"]


def test_vector_6_tcpflags() -> None:
    assert import_door("tcpflags = SYN,!ack")["tcpflags"] == "syn,!ack"
    assert import_door("tcpflags = syn, ack")["tcpflags"] == "syn"
    assert error_of(config(door("tcpflags = ece"))).startswith("line 7: tcpflags: `ece` is no TCP flag; known are fin,")
    assert error_of(config(door("tcpflags ="))).startswith("line 7: tcpflags: ")


def test_vector_7_comments_behind_values() -> None:
    made = import_door("seq_timeout = 6 # x", "command = a # b")
    assert made["seq_timeout"] == 6
    assert made["start_command"] == ["/bin/sh", "-c", "a # b", "sh", "%IP%"]
    assert import_door("command = X=1 foo")["start_command"] == ["/bin/sh", "-c", "X=1 foo", "sh", "%IP%"]


def test_vector_8_names_of_the_same_keys() -> None:
    old = import_door("timeout = 7", "command = a", "command_6 = b")
    new = import_door("SEQ_TIMEOUT = 7", "Start_Command = a", "start_command_6 = b")
    assert old == new
    assert (old["seq_timeout"], old["start_command"], old["start_command_6"]) == (7, ["a"], ["b"])


def test_vector_9_defaults() -> None:
    conversion = convert(f"[ssh]\nsequence = {KNOCKS}\ncommand = a\nstop_command = b\n".encode())
    made = doors_of(conversion)["ssh"]
    assert (made["seq_timeout"], made["cmd_timeout"]) == (25, 10)
    assert "[firewall]" not in conversion.text
    for text in ("no interface: knockd listens on eth0", "no seq_timeout", "no cmd_timeout", "no tcpflags"):
        assert any(f"1 changed: {text}" in line for line in notes(conversion))


def test_vector_10_the_later_of_sequence_and_file_wins() -> None:
    made = import_door("one_time_sequences = /var/lib/knockd/ssh")
    assert made["one_time_sequences"] == "/var/lib/knockd/ssh"
    assert "sequence" not in made
    conversion = convert(config(door("one_time_sequences = /f", "sequence = 1,2,3")))
    assert doors_of(conversion)["ssh"]["sequence"] == ["1", "2", "3"]
    assert "7 left out: one_time_sequences: line 8 overrules it" in notes(conversion)
    assert "4 left out: sequence: line 7 overrules it" in notes(conversion)


def test_vector_11_the_file_of_one_time_sequences_is_the_loaders() -> None:
    conversion = convert(config(door("one_time_sequences = /nowhere/at/all")))
    assert checked(conversion.text).warnings
    assert error_of(config(door("one_time_sequences ="))).startswith("line 7: one_time_sequences: no path")
    twice = config(door("one_time_sequences = /f"), door("one_time_sequences = /f", name="web"))
    assert error_of(twice) == "line 13: one_time_sequences: doors.ssh has this file already"


@pytest.mark.parametrize("tutorial", [TUTORIAL, TIMED_TUTORIAL])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace(" ", "\t").replace("\tINPUT", " INPUT").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: "".join(f"   {line}  \n" for line in text.splitlines()).encode(),
    ],
    ids=["CRLF", "CR", "BOM", "tabs", "no newline at the end", "blanks around lines"],
)
def test_how_a_file_was_saved_does_not_matter(tutorial: str, change: object) -> None:
    assert callable(change)
    assert convert(change(tutorial)) == convert(tutorial.encode())


def test_latin_1_is_read_and_reported() -> None:
    conversion = convert(b"# caf\xe9\n" + config(door("command = /bin/tell \xfc".encode("latin-1").decode("latin-1"))))
    assert "1 changed: is not UTF-8; the file was read as Latin-1" in notes(conversion)
    only_latin = convert(config(door("command = /bin/tell x")).replace(b"tell x", b"tell \xfc"))
    assert doors_of(only_latin)["ssh"]["start_command"] == ["/bin/tell", "\xfc"]


def test_binary_is_refused() -> None:
    assert error_of("[a]\nsequence = 1\n".encode("utf-16")) == "line 1: has a NUL byte; this is no text file"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "[options]\nUseSyslog\n"])
def test_a_file_without_doors_is_refused(text: str) -> None:
    assert error_of(text).endswith("there is no door in this file")


def test_a_backslash_goes_on_in_the_next_line() -> None:
    conversion = convert(
        config(
            door(
                "command = /usr/sbin/iptables -A INPUT \\",
                "    -s %IP% -p tcp --dport=22 \\",
                "    -j ACCEPT",
                "target = 192.0.2.1",
            )
        )
    )
    made = doors_of(conversion)["ssh"]
    assert (made["open"], made["target"]) == (["22/tcp"], "192.0.2.1")
    assert [line[:21] for line in notes(conversion)][-3:] == [
        "7 unwise: nothing clo", "8 changed: continues ", "9 changed: continues ",
    ]  # fmt: skip


@pytest.mark.parametrize("following", ["target = 192.0.2.1", "# x", "", "[web]\nsequence = 1"])
def test_a_backslash_never_swallows_a_line_with_a_meaning_of_its_own(following: str) -> None:
    conversion = convert(config(door("command = a \\", following)))
    assert doors_of(conversion)["ssh"]["start_command"] == ["a"]
    assert any("7 changed: the backslash" in line for line in notes(conversion))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello world", "line 7: `hello world` is neither"),
        ("[web", "line 7: `[web` is no section"),
        ("command = " + "a" * 9000, "line 7: is longer than 8192 characters"),
        ("seq_timeout = soon", "line 7: seq_timeout: `soon` is no number of seconds"),
        ("cmd_timeout = -1", "line 7: cmd_timeout: `-1` is no number of seconds"),
    ],
)
def test_what_knockd_refuses_is_refused_with_its_line(line: str, message: str) -> None:
    assert error_of(config(door(line))).startswith(message)


def test_options_may_come_twice_and_carry_comments() -> None:
    text = f"""\
[options]
UseSyslog
Interface = eth1 # the one outside
pidfile = /run/knockd.pid
interface = eth2
[options]
logfile = /var/log/a
LogFile = /var/log/b # c
colour = blue
{door()}"""
    conversion = convert(text.encode())
    read = checked(conversion.text)
    assert read.plan.interfaces == ("eth1",)
    assert (read.log.syslog, str(read.log.file)) == (True, "/var/log/b")
    assert [line for line in notes(conversion) if not line.startswith("1")] == [
        "3 changed: Interface: the comment behind the value is left out",
        "4 left out: pidfile: nfknock has no such file; its lock says it runs",
        "5 left out: interface: knockd takes the first, in line 3",
        "7 left out: logfile: line 8 overrules it",
        "8 changed: LogFile: the comment behind the value is left out",
        "9 left out: `colour`: knockd has no such key in [options]",
    ]


@pytest.mark.parametrize("value", ['""', "", "any", "ALL"])
def test_no_interface_in_particular(value: str) -> None:
    conversion = convert(f"[options]\ninterface = {value}\n{door()}".encode())
    assert "[firewall]" not in conversion.text
    assert "2 changed: interface: nfknock listens on all interfaces but loopback" in notes(conversion)


@pytest.mark.parametrize("value", ["eth0:1", "eth0 eth1", "a-name-that-is-too-long"])
def test_an_interface_that_cannot_be_is_left_out(value: str) -> None:
    conversion = convert(f"[options]\ninterface = {value}\n{door()}".encode())
    checked(conversion.text)
    assert any(line.startswith("2 left out: interface: ") for line in notes(conversion))


@pytest.mark.parametrize("line", ["key = secret", "acl = 192.0.2.0/24", "ipset = knockers", "ipset_timeout = 15"])
def test_keys_of_forks_are_reported(line: str) -> None:
    conversion = convert(config(door(line)))
    assert f"7 left out: `{line.partition(' ')[0]}`: knockd has no such key in a door" in notes(conversion)


def test_a_misspelt_key_is_reported_with_what_may_be_meant() -> None:
    conversion = convert(config(door("stop_comand = a")))
    assert any("7 left out" in line and "is stop_command meant?" in line for line in notes(conversion))


def test_comments_are_reported_once() -> None:
    conversion = convert(b"# a\n" + config(door("# b")))
    assert notes(conversion)[0] == "1 left out: comments are not carried over (lines 1, 8)"


def test_a_url_behind_the_log_file() -> None:
    conversion = convert(f"[options]\ninterface = eth0\nlogfile = /var/log/knockd.loghttps://x\n{door()}".encode())
    assert any(line.startswith("3 unwise: logfile: ") for line in notes(conversion))


@pytest.mark.parametrize(
    "text", [TUTORIAL, TUTORIAL.replace("\n", "\r"), "[a]\n\tSEQUENCE=1\n", "[a]\none_time_sequences = /f\n"]
)
def test_what_looks_like_knockds(text: str) -> None:
    assert looks_like_knockd(text)


@pytest.mark.parametrize(
    "text",
    [
        '[doors.ssh]\nsequence = ["1"]\n',
        "[doors.ssh]\nsequence = 7000,8000\n",
        '[doors.ssh]\none_time_sequences = "/f"\n',
        "# sequence = 7000\n",
        "",
    ],
)
def test_what_does_not_look_like_knockds(text: str) -> None:
    assert not looks_like_knockd(text)
