"""The program where there is no Unix: what only Unix has is taken away, and the client works all the same.

That is no Windows, but what keeps a program from starting there is mostly this.
"""

from __future__ import annotations

import socket
import subprocess
import sys

import click
import pytest

from nfknock.cli.app import nfknock

# What the module lacks elsewhere, and what is no module at all there.
_BARE = """
import os, select, signal, socket, sys
for name in ("fcntl", "grp", "iptc", "netfilterqueue", "pwd", "pyroute2", "resource", "scapy", "termios"):
    sys.modules[name] = None
for module, names in (
    (os, "O_NONBLOCK O_CLOEXEC O_NOFOLLOW fchmod fchown chown fork geteuid getuid getegid getgid mkfifo setsid uname"),
    (select, "poll epoll"),
    (signal, "SIGHUP SIGPIPE SIGUSR1 SIGALRM SIGCHLD SIGKILL alarm setitimer"),
    (socket, "AF_UNIX AF_NETLINK AF_PACKET MSG_DONTWAIT SO_REUSEPORT SO_MARK SO_BINDTODEVICE recv_fds"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
from nfknock.cli import main
main()
"""


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _BARE, *arguments], capture_output=True, text=True, input=stdin)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["knock", "--help"], ["connect", "--help"]])
def test_it_starts(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_it_knocks() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        done = run("knock", "127.0.0.1", f"{listener.getsockname()[1]}:udp")
        assert (done.returncode, done.stderr) == (0, "")
        assert listener.recv(9) == b"\0"


def test_it_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(10)
        code = [
            sys.executable,
            "-c",
            _BARE,
            "connect",
            "127.0.0.1",
            str(service.getsockname()[1]),
            "--sequence",
            "9/udp",
        ]
        with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _address = service.accept()
            with connection:
                connection.sendall(b"welcome")
            assert process.communicate(timeout=10) == (b"welcome", b"")
            assert process.returncode == 0


def test_the_client_imports_nothing_that_it_has_no_use_for() -> None:
    code = "import sys; from nfknock.cli.app import nfknock; import nfknock.cli.knock; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nfknock.client.knock" in imported
    assert not {"msgspec", "rich", "tomllib", "nfknock.config", "nfknock.backends", "nfknock.daemon"} & set(imported)


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    context = click.Context(nfknock)
    listed = nfknock.list_commands(context)
    assert listed == list(nfknock.entries)
    for name, entry in nfknock.entries.items():
        command = nfknock.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert " ".join((command.help or "").split()).startswith(entry.help.rstrip("."))
    assert [line.split()[0] for line in nfknock.get_help(context).split("Commands:\n")[1].splitlines()] == listed


def test_a_command_that_there_is_not() -> None:
    done = run("konck")
    assert (done.returncode, done.stderr) == (2, "nfknock: no such command 'konck'; see `nfknock --help`\n")
