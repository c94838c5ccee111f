"""What is known of a packet, and of an SSH session."""

from __future__ import annotations

import pytest

from nfknock.core.model import Port
from nfknock.host import ssh
from nfknock.host.nftables import compare, judge
from nfknock.host.nftread import Chain, Expression, Rule, Ruleset
from nfknock.host.probe import Answer, Field, Probe

KNOWN = Field.of(b"\x00\x16")
HALF = Field(b"\xc0\x00", b"\xff\x00")


@pytest.mark.parametrize(
    ("operation", "wanted", "answer", "half"),
    [
        (0, b"\x00\x16", True, False),
        (0, b"\xc0\x01", False, None),
        (1, b"\xc0\x01", True, None),
        (2, b"\x00\x16", False, False),
        (2, b"\x00\x17", True, False),
        (2, b"\xc1\x00", True, True),
        (3, b"\x00\x16", True, False),
        (3, b"\xc0\x0f", True, None),
        (4, b"\x00\x15", True, True),
        (4, b"\x00\x16", False, True),
        (5, b"\x00\x16", True, True),
        (5, b"\xc1\x00", False, False),
        (9, b"\x00\x16", None, None),
    ],
)
def test_what_a_comparison_comes_to(operation: int, wanted: bytes, answer: Answer, half: Answer) -> None:
    assert compare(KNOWN, operation, wanted) is answer
    assert compare(HALF, operation, wanted) is half


def test_a_mask_makes_known_what_it_takes_away() -> None:
    assert HALF.masked(b"\xff\x00", bytes(2)).equals(b"\xc0\x00") is True
    assert Field.unknown(2).masked(bytes(2), b"\x01\x02").equals(b"\x01\x02") is True
    assert Field.unknown(2).masked(b"\x00\x01", bytes(2)).equals(b"\x00\x01") is None


def test_nobody_in_particular_is_in_no_list() -> None:
    anybody = Field(bytes(4), bytes(4), is_unlisted=True)
    assert anybody.equals(b"\xc0\x00\x02\x01") is False
    assert anybody.is_between(b"\xc0\x00\x02\x00", b"\xc0\x00\x02\xff") is False
    assert anybody.is_between(bytes(4), b"\xff" * 4) is True


def test_an_expression_in_another_shape_may_decide_anything() -> None:
    chain = Chain(key=(1, "t", "input"), hook="input", kind="filter", drops=False)
    probe = Probe(port=Port(22), version=4, interface="eth0")
    for name in ("cmp", "immediate", "lookup", "match"):
        rule = Rule(key=chain.key, expressions=(Expression(name, {3: b"\0"}),))
        ruleset = Ruleset({chain.key: chain}, {chain.key: [rule]}, {})
        assert [each.fate for each in judge(ruleset, probe)] == ["may drop"]
    assert list(judge(Ruleset({chain.key: chain}, {chain.key: []}, {}), probe)) == []


@pytest.mark.parametrize(
    ("text", "source", "port"),
    [
        ("192.0.2.2 50514 192.0.2.1 22", "192.0.2.2", 22),
        ("::ffff:192.0.2.2 50514 ::ffff:192.0.2.1 2222", "192.0.2.2", 2222),
        ("2001:db8::2 50514 2001:db8::1 22", "2001:db8::2", 22),
        ("fe80::2%eth9 50514 fe80::1%eth9 22", "fe80::2", 22),
    ],
)
def test_ssh_sessions(text: str, source: str, port: int) -> None:
    session = ssh.parse(text)
    assert session is not None
    assert (str(session.source), session.port) == (source, port)
    if "%" in text:
        assert session.interface == "eth9"


@pytest.mark.parametrize(
    "text", ["", "x", "UNKNOWN 65535 UNKNOWN 65535", "192.0.2.2 1 192.0.2.1 0", "1 2 3 4 5", "a b c d"]
)
def test_what_is_no_ssh_session(text: str) -> None:
    assert ssh.parse(text) is None
