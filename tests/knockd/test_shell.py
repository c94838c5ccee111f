"""Splitting like a shell, and passing the address instead of pasting it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfknock.knockd.shell import positional, split

SHELL = shutil.which("sh") or "/bin/sh"
ADDRESS = "2001:db8::7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ("a 'b  c' \"d e\"", ["a", "b  c", "d e"]),
        (r"a b\ c", ["a", "b c"]),
        (r'a "b\"c" "d\e"', ["a", 'b"c', r"d\e"]),
        ("a '' b", ["a", "", "b"]),
        ('--rule="family="ipv4" %IP%"', ["--rule=family=ipv4 %IP%"]),
        ("a b#c", ["a", "b#c"]),
        ("a '$x' \"100%\" $", ["a", "$x", "100%", "$"]),
        ("nft add { %IP% }", ["nft", "add", "{", "%IP%", "}"]),
    ],
)
def test_words_are_those_of_a_shell(text: str, words: list[str]) -> None:
    script = split(text)
    assert script.needs_shell == ""
    assert [list(part) for part in script.parts] == [words]


@pytest.mark.parametrize(
    ("script", "rewritten"),
    [
        ("echo %IP%", 'echo "$1"'),
        ("echo a%IP%b", 'echo a"$1"b'),
        ('echo "at %IP%!"', 'echo "at $1!"'),
        ("echo 'at %IP%!'", "echo 'at '\"$1\"'!'"),
        ('echo "$(grep "%IP%" f)"', 'echo "$(grep "$1" f)"'),
        ('echo "$(grep %IP% f)"', 'echo "$(grep "$1" f)"'),
        ('echo "it\'s %IP%"', 'echo "it\'s $1"'),
        (r"echo \%IP%", 'echo "$1"'),
        (r'echo "\%IP%"', r'echo "\\$1"'),
        (r"echo \'%IP%\'", "echo \\'\"$1\"\\'"),
        ("a; # at %IP%", 'a; # at "$1"'),
        ("awk '/%IP%/ {print $2}'", "awk '/'\"$1\"'/ {print $2}'"),
        (r"echo `echo \\%IP%`", r"echo `echo \\%IP%`"),
        ("a `b '` %IP%", 'a `b \'` "$1"'),
        ("(echo '%IP%')", "(echo ''\"$1\"'')"),
    ],
)
def test_the_address_is_quoted_for_where_it_stands(script: str, rewritten: str) -> None:
    assert positional(script) == rewritten


PIECES = st.sampled_from(
    [
        *("%IP%", "a", " ", "x=%IP%", "'", '"', "'%IP%'", '"%IP%"', "\\", "\\%IP%", "#", "; printf '<%s>' "),
        *("$(printf %s ", ")", "`printf %s ", "`", "(printf y ", "1", "%IP%1"),
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_a_shell_does_the_same_with_both(rest: str) -> None:
    """What knockd's shell would print with the address pasted in, ours prints with the address beside it."""
    script = "printf '<%s>' " + rest
    pasted = _run(script.replace("%IP%", ADDRESS))
    if pasted.returncode == 0:
        passed = _run(positional(script).replace("%IP%", ADDRESS), "sh", ADDRESS)
        assert passed.stdout == pasted.stdout


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # With no PATH, nothing but what the shell has built in can be found.
    command = [SHELL, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, env={"PATH": "/nowhere"}, stdin=subprocess.DEVNULL, timeout=10)
