"""What becomes of doors: the tutorials, pairs by what they do, time limits, flags, names."""

from __future__ import annotations

import pytest

from nfknock.core.model import Opening, Port
from nfknock.knockd import KnockdError, convert
from tests.knockd.files import (
    KNOCKS,
    OTHER_KNOCKS,
    TIMED_TUTORIAL,
    TUTORIAL,
    checked,
    config,
    door,
    doors_of,
    import_door,
    notes,
)

REVERSED = "5307,8203:udp,7101"
OPEN = "command = iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
CLOSE = "command = iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
START, STOP = OPEN.replace("command", "start_command"), CLOSE.replace("command", "stop_command")
PORTS = ["22/tcp"]


def test_the_open_close_tutorial_becomes_one_door() -> None:
    conversion = convert(TUTORIAL.encode())
    assert doors_of(conversion) == {
        "openSSH": {
            "sequence": ["7000", "8000", "9000"],
            "seq_timeout": 5,
            "open": ["22/tcp"],
            "open_timeout": 0,
            "close_sequence": ["9000", "8000", "7000"],
            "tcpflags": "syn",
        }
    }
    assert checked(conversion.text).doors[0].opens == (Opening(Port(22)),)
    assert notes(conversion) == [
        "1 changed: no interface: knockd listens on eth0 alone, nfknock on all but loopback",
        "5 unwise: sequence: everybody knows this one; `nfknock init` makes a fresh one",
        "5 unwise: sequence: ascending ports can be opened by a port scan",
        "5 unwise: sequence: TCP alone is easier to find than TCP and UDP mixed",
        '7 changed: command: becomes open = ["22/tcp"], for IPv4 and IPv6',
        "10 changed: [closeSSH] becomes the close_sequence of doors.openSSH",
        "13 changed: command: closing is what the close_sequence of doors.openSSH does",
    ]


def test_the_timed_tutorial_becomes_a_door_with_an_end() -> None:
    conversion = convert(TIMED_TUTORIAL.encode())
    assert doors_of(conversion) == {
        "opencloseSSH": {
            "sequence": ["2222/udp", "3333", "4444/udp"],
            "seq_timeout": 15,
            "open": ["22/tcp"],
            "open_timeout": 10,
            "tcpflags": "syn",
        }
    }
    read = checked(conversion.text)
    assert (read.doors[0].open_timeout, str(read.log.file)) == (10, "/var/log/knockd.log")
    lines = notes(conversion)
    assert "5 unwise: sequence: everybody knows this one; `nfknock init` makes a fresh one" in lines
    [flags] = [line for line in lines if line.startswith("7 ")]
    assert flags.startswith('7 changed: tcpflags: syn,ack becomes "syn"')
    assert "SYN+ACK packets alone" in flags


def test_exact_keeps_the_flags_and_says_what_that_means() -> None:
    conversion = convert(TIMED_TUTORIAL.encode(), is_exact=True)
    assert doors_of(conversion)["opencloseSSH"]["tcpflags"] == "syn,ack"
    assert any(line.startswith("7 unwise: tcpflags: no ordinary client sends") for line in notes(conversion))
    without = convert(config(door().replace("tcpflags = syn\n", "")), is_exact=True)
    assert doors_of(without)["ssh"]["tcpflags"] == ""
    assert "tcpflags" not in doors_of(convert(config(door().replace("tcpflags = syn\n", ""))))["ssh"]


@pytest.mark.parametrize("flags", ["ack", "fin,!ack", "fin,urg,!ack", "!syn"])
def test_flags_that_no_client_sends_are_kept_and_called_unwise(flags: str) -> None:
    conversion = convert(config(door(f"tcpflags = {flags}")))
    assert doors_of(conversion)["ssh"]["tcpflags"] == flags
    assert any(line.startswith("7 unwise: tcpflags: ") for line in notes(conversion))


def test_flags_of_a_door_without_tcp_are_left_out() -> None:
    conversion = convert(config(door(sequence="7101:udp,4101:udp,5101:udp")))
    assert "tcpflags" not in doors_of(conversion)["ssh"]
    assert "6 left out: tcpflags: every knock is UDP, which has no flags" in notes(conversion)


# Two doors as (name, sequence, command), and what the first is then closed by.
PAIRS = {
    "exact reverse": (("open", KNOCKS, OPEN), ("close", REVERSED, CLOSE), True),
    "another sequence": (("open", KNOCKS, OPEN), ("close", OTHER_KNOCKS, CLOSE), True),
    "names that mislead": (("CLOSE_ssh", KNOCKS, OPEN), ("OPEN_ssh", OTHER_KNOCKS, CLOSE), True),
    "22 and ssh": (("a", KNOCKS, OPEN), ("b", REVERSED, CLOSE.replace("22", "ssh")), True),
    "one closes with ufw": (
        ("a", KNOCKS, OPEN),
        ("b", REVERSED, "command = ufw delete allow from %IP% to any port 22 proto tcp"),
        True,
    ),
    "another port": (("open", KNOCKS, OPEN), ("close", REVERSED, CLOSE.replace("22", "23")), False),
    "the same sequence": (("open", KNOCKS, OPEN), ("close", KNOCKS, CLOSE), False),
    "the same end": (("open", KNOCKS, OPEN), ("close", "1," + KNOCKS, CLOSE), False),
}


@pytest.mark.parametrize(("one", "other", "is_pair"), PAIRS.values(), ids=PAIRS)
def test_pairs_are_matched_by_what_they_do(
    one: tuple[str, str, str],
    other: tuple[str, str, str],
    is_pair: bool,  # noqa: FBT001
) -> None:
    sections = [door(command, name=name, sequence=sequence) for name, sequence, command in (one, other)]
    for order in (sections, sections[::-1]):
        conversion = convert(config(*order))
        made = doors_of(conversion)
        checked(conversion.text)
        assert made[one[0]]["open"] == PORTS
        assert ("close_sequence" in made[one[0]]) == is_pair
        assert (other[0] in made) != is_pair
        assert any(f"[{other[0]}]" in line or other[0] in made for line in notes(conversion))


def test_of_several_doors_the_exact_reverse_is_closed() -> None:
    conversion = convert(
        config(
            door(OPEN, name="one", sequence=OTHER_KNOCKS),
            door(OPEN, name="two"),
            door(CLOSE, name="close-one", sequence=REVERSED),
        )
    )
    made = doors_of(conversion)
    assert "close_sequence" in made["two"]
    assert "close_sequence" not in made["one"]
    assert any(line.startswith("7 unwise: nothing closes it") for line in notes(conversion))


def test_of_several_doors_the_one_with_the_like_name_is_closed() -> None:
    made = doors_of(
        convert(
            config(
                door(OPEN, name="open_bob", sequence=OTHER_KNOCKS),
                door(OPEN, name="open_ann"),
                door(CLOSE, name="close_ann", sequence="1000,3000:udp,2000"),
            )
        )
    )
    assert made["open_ann"]["close_sequence"] == ["1000", "3000/udp", "2000"]
    assert "close_sequence" not in made["open_bob"]


def test_where_it_is_not_certain_the_closing_door_stays_and_says_so() -> None:
    conversion = convert(
        config(
            door(OPEN, name="one", sequence=OTHER_KNOCKS),
            door(OPEN, name="two"),
            door(CLOSE, name="shut", sequence="1000,3000:udp,2000"),
        )
    )
    assert doors_of(conversion)["shut"]["start_command"][:2] == ["iptables", "-D"]
    assert any("which of doors.one and doors.two it closes is not certain" in line for line in notes(conversion))


def test_a_closing_door_alone_stays_a_command() -> None:
    conversion = convert(config(door(CLOSE)))
    assert doors_of(conversion)["ssh"]["start_command"][:2] == ["iptables", "-D"]
    assert any("it closes, and no door opens the same" in line for line in notes(conversion))


def test_what_a_closing_door_has_of_its_own_is_reported() -> None:
    closing = door(CLOSE, "target = 192.0.2.1", "cmd_timeout = 3", name="close", sequence=REVERSED)
    closing = closing.replace("seq_timeout = 5", "seq_timeout = 9").replace("tcpflags = syn", "tcpflags = syn,!ack")
    lines = notes(convert(config(door(OPEN), closing)))
    for text in (
        "11 left out: seq_timeout",
        "12 left out: tcpflags",
        "14 left out: target",
        "15 left out: cmd_timeout",
    ):
        assert any(line.startswith(text) for line in lines), text


def test_a_door_that_nothing_closes_is_unwise() -> None:
    conversion = convert(config(door(OPEN, "cmd_timeout = 30")))
    assert doors_of(conversion)["ssh"]["open_timeout"] == 0
    assert any(line.startswith("7 unwise: nothing closes it") for line in notes(conversion))
    assert any(line.startswith("8 left out: cmd_timeout") for line in notes(conversion))


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("30", 30), ("3600 # an hour", 3600), ("30s", 30), ("0", 1), ("999999999", 366 * 86400)]
)
def test_cmd_timeout_is_the_holes_end(timeout: str, seconds: int) -> None:
    conversion = convert(config(door(START, STOP, f"cmd_timeout = {timeout}")))
    assert doors_of(conversion)["ssh"]["open_timeout"] == seconds
    checked(conversion.text)


def test_a_timed_door_may_have_a_closing_door_too() -> None:
    made = doors_of(convert(config(door(START, STOP, "cmd_timeout = 30"), door(CLOSE, name="b", sequence=REVERSED))))
    assert made["ssh"]["open_timeout"] == 30
    assert made["ssh"]["close_sequence"] == ["5307", "8203/udp", "7101"]


@pytest.mark.parametrize(
    ("start", "stop", "text"),
    [
        (START, STOP.replace("22", "ssh"), "does not name the rule as start_command does"),
        (START.replace("--dport", "--syn --dport"), STOP, "does not name the rule as start_command does"),
        (START, STOP.replace("iptables", "/sbin/iptables"), "is what the end of open_timeout does"),
        (START, "stop_command = ufw delete allow from %IP% to any port 22 proto tcp", "speaks to ufw"),
    ],
)
def test_a_stop_that_is_written_otherwise_is_a_close(start: str, stop: str, text: str) -> None:
    conversion = convert(config(door(start, stop)))
    assert doors_of(conversion)["ssh"]["open_timeout"] == 10
    assert any(line.startswith("8 changed: ") and text in line for line in notes(conversion))


HANDLE = (
    'nft delete rule inet filter input handle $(nft -a list chain inet filter input | grep "%IP%" '
    "| grep -o 'handle [0-9]*' | awk '{print $2}')"
)


def test_an_nft_rule_that_is_deleted_by_its_handle_is_closed() -> None:
    start = "start_command = nft add rule inet filter input ip saddr %IP% tcp dport 22 accept"
    timed = convert(config(door(start, f"stop_command = {HANDLE}", "cmd_timeout = 60")))
    assert doors_of(timed)["ssh"]["open_timeout"] == 60
    assert any(line.startswith("8 changed: it looks for the rule by its address") for line in notes(timed))
    closing = door(f"command = {HANDLE}", name="close", sequence=REVERSED)
    assert "close_sequence" in doors_of(convert(config(door(start), closing)))["ssh"]
    assert "close_sequence" not in doors_of(convert(config(door(OPEN), closing)))["ssh"]
    everybody = HANDLE.replace("%IP%", "dport 22")
    assert "open" not in doors_of(convert(config(door(start, f"stop_command = {everybody}"))))["ssh"]


@pytest.mark.parametrize(
    "stop",
    [
        "stop_command = iptables -F INPUT",
        "stop_command = iptables -A INPUT -s %IP% -p tcp --dport 22 -j REJECT",
        "stop_command = /bin/echo bye",
        STOP.replace("22", "23"),
    ],
)
def test_a_stop_that_does_something_else_keeps_both(stop: str) -> None:
    conversion = convert(config(door(START, stop)))
    made = doors_of(conversion)["ssh"]
    assert "open" not in made
    assert made["start_command"][:2] == ["iptables", "-A"]
    assert (bool(made["stop_command"]), made["cmd_timeout"]) == (True, 10)
    assert any("7 kept" in line and "do not match" in line for line in notes(conversion))
    checked(conversion.text)


def test_commands_for_ipv6() -> None:
    same = door(OPEN, OPEN.replace("command", "command_6").replace("iptables", "ip6tables"))
    assert doors_of(convert(config(same)))["ssh"]["open"] == PORTS
    other = convert(config(door(OPEN, OPEN.replace("command", "command_6").replace("22", "23"))))
    assert "open" not in doors_of(other)["ssh"]
    assert any("does something else for IPv6" in line for line in notes(other))
    nothing = import_door(OPEN, "command_6 =")
    assert (nothing["start_command"][0], nothing["start_command_6"]) == ("iptables", [])
    assert import_door("command = a", "start_command_6 = b %IP%", "stop_command_6 =")["start_command_6"] == [
        "b",
        "%IP%",
    ]


def test_of_two_lines_with_one_key_the_last_counts() -> None:
    conversion = convert(config(door("command = a", "start_command = b")))
    assert doors_of(conversion)["ssh"]["start_command"] == ["b"]
    assert "7 left out: command: line 8 overrules it" in notes(conversion)


@pytest.mark.parametrize(
    ("names", "become"),
    [
        (["open SSH"], ["open-SSH"]),
        (["ssh", "ssh"], ["ssh", "ssh-2"]),
        (["ssh.x"], ["ssh.x"]),
        (["[ssh]"], ["ssh"]),
        (["tür"], ["t-r"]),
        (["\u00e9"], ["door"]),
        (["a" * 50], ["a" * 40]),
        (["a" * 50, "a" * 60], ["a" * 40, "a" * 36 + "-2"]),
        (["_x"], ["x"]),
        (["options2", "Doors"], ["options2", "Doors"]),
    ],
)
def test_names_become_words(names: list[str], become: list[str]) -> None:
    sequences = [KNOCKS, OTHER_KNOCKS]
    conversion = convert(
        config(*(door("command = a", name=n, sequence=s) for n, s in zip(names, sequences, strict=False)))
    )
    assert list(doors_of(conversion)) == become
    checked(conversion.text)
    for name, new in zip(names, become, strict=True):
        assert any(line.endswith(f"is called doors.{new}") for line in notes(conversion)) == (name != new)


def test_the_options_of_a_door_that_cannot_be() -> None:
    conversion = convert(config(door("target = bastion.example.org", "seq_timeout = 9999")))
    made = doors_of(conversion)["ssh"]
    assert ("target" in made, made["seq_timeout"]) == (False, 3600)
    lines = notes(conversion)
    assert any(line.startswith("7 left out: target: `bastion.example.org` is no address") for line in lines)
    assert "8 changed: seq_timeout: 9999 s becomes 3600 s (1 to 3600 s)" in lines


def test_doors_that_share_a_sequence_are_unwise() -> None:
    """The same sequence, or one that is the start of another: both doors open."""
    conversion = convert(config(door("command = a"), door("command = b", name="web", sequence=KNOCKS + ",99")))
    assert "4 unwise: sequence: is the start of doors.web.sequence, so that opens both" in notes(conversion)


def test_what_cannot_be_seen_is_escaped() -> None:
    raw = config(door("command = /bin/tell '\x7f\x1b[31m\u202e\U000e0001\"\\' %IP%"))
    conversion = convert(raw)
    assert doors_of(conversion)["ssh"]["start_command"][1] == '\x7f\x1b[31m\u202e\U000e0001"\\'
    assert all(char.isprintable() or char == "\n" for char in conversion.text)
    assert all(note.text.isprintable() for note in conversion.notes)


def test_a_crowd_of_doors_is_refused() -> None:
    with pytest.raises(KnockdError, match="at most 256"):
        convert(b"[a]\nsequence=1\n" * 300)
