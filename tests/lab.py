"""Two hosts joined by one cable and by nothing else: network namespaces of the test's own.

No ruleset is ever applied in the namespace that a test starts in. Works for root, and for an ordinary user inside
`unshare -Urnm` (script/test does that).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nfknock.backends import Backend
from nfknock.backends.ipset.kernel import Sets
from nfknock.backends.iptables import IptablesBackend
from nfknock.backends.labels import label_of
from nfknock.backends.nftables import NftablesBackend, elements
from nfknock.core.plan import BackendChoice, ReaderKind
from tests.setting import CHOSEN, Setting

# As nft lists them, with the rules that look at them.
_SETS_OF_HOLES = re.compile(r'^\tset [hf][46]_[^}]*\}\n\n?|^.*"nfknock: holes in .*\n', re.MULTILINE)
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000

BASTION4, BASTION6 = "192.0.2.1", "2001:db8::1"
CLIENT4, CLIENT6 = "192.0.2.2", "2001:db8::2"
STRANGER4, STRANGER6 = "192.0.2.3", "2001:db8::3"
"""A second address of the client's host: whoever knocks must not open for it."""

NFKNOCK = [str(Path(sys.executable).with_name("nfknock"))]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Be in another network namespace with this thread, for a while."""
    with Path("/proc/thread-self/ns/net").open() as before, Path(path).open() as there:
        _check(_LIBC.setns(there.fileno(), _CLONE_NEWNET), f"entering {path}")
        try:
            yield
        finally:
            _check(_LIBC.setns(before.fileno(), _CLONE_NEWNET), "coming back")


@contextlib.contextmanager
def own_namespace() -> Iterator[None]:
    """Be in a new, empty network namespace with this thread, for a while."""
    with Path("/proc/thread-self/ns/net").open() as before:
        _check(_LIBC.unshare(_CLONE_NEWNET), "making a network namespace")
        try:
            yield
        finally:
            _check(_LIBC.setns(before.fileno(), _CLONE_NEWNET), "coming back")


def can_make_namespaces() -> bool:
    """Whether this process may have network namespaces of its own."""
    try:
        with own_namespace():
            return True
    except OSError:
        return False


def is_root() -> bool:
    """Whether this is a real root, and not an ordinary user in a namespace, where there is no other user."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2:] != ["1"]


READER: ReaderKind = "nflog" if CHOSEN.reader == "nflog" else "nfqueue"


def make_backend(clock: Callable[[], float]) -> Backend:
    """Return the backend that the tests run with, on a clock of one's own."""
    if CHOSEN.backend == "nftables":
        return NftablesBackend(clock)
    return IptablesBackend(clock, BackendChoice(name=CHOSEN.backend))


class Host:
    """A network namespace, held by a process that sleeps in it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.path = f"/proc/{self._holder.pid}/ns/net"
        own = Path("/proc/self/ns/net").stat().st_ino
        wait_until(lambda: Path(self.path).stat().st_ino != own, "the namespace of a new host")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", "--", *arguments]

    def run(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program there to its end; its output is text."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, input=stdin, env=self.environment, timeout=60
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program there."""
        return subprocess.Popen(self.command(*arguments), text=True, env=self.environment, **options)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Be there with this thread."""
        with inside(self.path):
            yield

    def socket(self, family: int, kind: int, source: str = "") -> socket.socket:
        """Return a socket that lives there, whatever the thread does next."""
        with self.here():
            made = socket.socket(family, kind)
        made.settimeout(5)
        if source:
            made.bind((source, 0))
        return made

    def stop(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Lab:
    """A bastion and a client, both families, and the programs on them."""

    def __init__(self, directory: Path, setting: Setting = CHOSEN) -> None:
        self.directory = directory
        self.setting = setting
        self.config = directory / "nfknock.toml"
        environment = {
            "XTABLES_LOCKFILE": str(directory / "xtables.lock"),
            "NFKNOCK_RUNTIME_DIR": str(directory / "run"),
            "NFKNOCK_STATE_DIR": str(directory / "state"),
            "NFKNOCK_CONFIG": str(self.config),
            # Whoever runs the tests over SSH is not in here.
            "SSH_CONNECTION": "",
        }
        self.environment = environment
        self.bastion = Host(environment)
        self.client = Host(environment)
        self._closing = contextlib.ExitStack()
        self._wire()

    def _lay_cable(self) -> None:
        """Make the interfaces b0 of the bastion and c0 of the client, joined by something."""
        self.bastion.run("ip", "link", "add", "b0", "type", "veth", "peer", "name", "c0", "netns", str(self.client.pid))

    def _wire(self) -> None:
        self._lay_cable()
        for host, device, addresses in (
            (self.bastion, "b0", (BASTION4, BASTION6)),
            (self.client, "c0", (CLIENT4, STRANGER4, CLIENT6, STRANGER6)),
        ):
            # No duplicate address detection: an address that is tentative for seconds is nothing to test with.
            host.run(
                "sysctl",
                "-qw",
                f"net.ipv6.conf.{device}.accept_dad=0",
                f"net.ipv6.conf.{device}.router_solicitations=0",
            )
            for address in addresses:
                length = "64" if ":" in address else "24"
                extra = ["nodad"] if ":" in address else []
                if address == STRANGER6:
                    # Used by those alone who ask for it, as the second IPv4 address is.
                    extra += ["preferred_lft", "0"]
                host.run("ip", "addr", "add", f"{address}/{length}", "dev", device, *extra)
            host.run("ip", "link", "set", device, "up")
        wait_until(lambda: self._answers(BASTION4) and self._answers(BASTION6), "the cable")

    def _answers(self, address: str) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.client.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.connect((address, 1))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return True

    def configure(self, text: str) -> None:
        """Write the bastion's configuration, with the backend and the reader of these tests if it names none."""
        self.config.write_text(self.setting.put_into(text))
        self.config.chmod(0o600)

    def nfknock(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run nfknock on the bastion."""
        return self.bastion.run(*NFKNOCK, *arguments, check=check)

    def knock(self, *arguments: str) -> None:
        """Knock from the client with `nfknock knock`."""
        self.client.run(*NFKNOCK, "knock", *arguments)

    def daemon(self) -> Daemon:
        """Start the daemon on the bastion and wait until it is ready."""
        return self._closing.enter_context(Daemon(self.bastion))

    def serve(self, port: int) -> None:
        """Start a TCP service on the bastion that sends every line back."""
        self._closing.enter_context(Service(self.bastion, port))

    def is_shut(self, address: str, port: int, *, source: str = "", within: float = 0.4) -> bool:
        """Whether a TCP connection from the client's host gets no answer for a moment."""
        return not self.reaches(address, port, source=source, within=within)

    def reaches(self, address: str, port: int, *, source: str = "", within: float = 5) -> bool:
        """Whether a TCP connection from the client's host gets an answer in time, its kernel's repetitions included."""
        try:
            self.connect(address, port, source=source, within=within).close()
        except TimeoutError:
            return False
        return True

    def wait_until_shut(self, address: str, port: int, *, within: float = 10) -> None:
        """Wait until new connections are no longer answered; not so often that the service falls behind."""

        def has_shut() -> bool:
            time.sleep(0.05)
            return self.is_shut(address, port, within=0.2)

        wait_until(has_shut, f"{address} {port} to be shut", within=within)

    def connect(self, address: str, port: int, *, source: str = "", within: float = 5) -> socket.socket:
        """Return a connection from the client's host."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = self._closing.enter_context(self.client.socket(family, socket.SOCK_STREAM, source))
        connection.settimeout(within)
        try:
            connection.connect((address, port))
        except OSError:
            # Or its kernel goes on trying, and strays between the knocks that come next.
            connection.close()
            raise
        connection.settimeout(5)
        return connection

    def rules(self, *, holes: bool = True) -> str:
        """Return both families' rules as iptables-save has them, and those of nf_tables, without counters and dates.

        Holes in sets are told as if they were rules; a set that nothing is in is not told.
        """
        lines = []
        for command in ("iptables-legacy-save", "ip6tables-legacy-save"):
            lines += [line.split(" [")[0] for line in self._saved(command).splitlines() if not line.startswith("#")]
        ruleset = self.bastion.run("nft", "--stateless", "--terse", "list", "ruleset").stdout
        lines += _SETS_OF_HOLES.sub("", ruleset).splitlines()
        lines += self._entries()
        return "\n".join(line for line in lines if holes or "nfknock hole" not in line)

    def _saved(self, command: str) -> str:
        """Return what a program saves, told anew where a set was destroyed that a rule, which it has read, looks at."""
        for _attempt in range(9):
            done = self.bastion.run(command, check=False)
            if done.returncode == 0:
                return done.stdout
            time.sleep(0.05)
        return self.bastion.run(command).stdout

    def _entries(self) -> list[str]:
        sets, lines = Sets(0), []
        with self.bastion.here():
            for name in sets.heads():
                for entry in sets.entries(name) if "-" in name else ():
                    assert entry is not None
                    port, to = entry.opening.port, f"-d {entry.opening.to} " if entry.opening.to else ""
                    where = f"-s {entry.source} {to}-p {port.protocol} --dport {port.number}"
                    lines.append(f'-A {name} {where} --comment "{entry.comment}" -j ACCEPT')
            for each in elements.names():
                for hole in elements.read(each):
                    [opening] = hole.opens
                    port, to = opening.port, f"-d {opening.to} " if opening.to else ""
                    where = f"-s {hole.source} {to}-p {port.protocol} --dport {port.number}"
                    lines.append(f'-A {each} {where} --comment "{label_of(hole)}" -j ACCEPT')
        return sorted(lines)

    def stop(self) -> None:
        self._closing.close()
        self.client.stop()
        self.bastion.stop()


class Daemon:
    """A running `nfknock run`, whose log is collected."""

    def __init__(self, host: Host, *options: str) -> None:
        self.lines: list[str] = []
        self.process = host.start(*NFKNOCK, "run", *options, stderr=subprocess.PIPE)
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def __enter__(self) -> Daemon:
        try:
            wait_until(lambda: "ready" in self.lines or self.process.poll() is not None, "the daemon", within=20)
            if self.process.poll() is not None:
                self._collector.join(5)
                raise AssertionError(f"the daemon ended: {self.lines}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._collector.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for(self, text: str, *, count: int = 1, within: float = 20) -> None:
        """Wait until that many log lines contain a text."""
        wait_until(
            lambda: sum(text in line for line in self.lines) >= count, f"{text!r} in {self.lines}", within=within
        )


class Service:
    """A TCP service on both families that sends every line back."""

    def __init__(self, host: Host, port: int) -> None:
        self._listener = host.socket(socket.AF_INET6, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._listener.settimeout(None)
        self._listener.bind(("::", port))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(4096):
                connection.sendall(data)


def wait_until(is_so: Callable[[], bool], what: str, *, within: float = 20) -> None:
    """Poll for something that another process brings about. Generous: machines are noisy."""
    give_up_at = time.monotonic() + within
    while not is_so():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.01)


def echo(connection: socket.socket, text: bytes = b"hello\n") -> bytes:
    """Send a line and return what comes back."""
    connection.sendall(text)
    return connection.recv(4096)
