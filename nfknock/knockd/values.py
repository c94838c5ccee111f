"""The values of knockd.conf that are no commands."""

from __future__ import annotations

import re
from typing import Final

from nfknock.core.model import BARE_SYN, LONGEST_SEQUENCE, Port, TcpFlags, as_source
from nfknock.knockd.reader import Setting
from nfknock.knockd.report import KnockdError, Report, quote

_KNOCK: Final = re.compile(r"(?P<number>\d{1,5})\s*(?::\s*(?P<protocol>tcp|udp))?", re.IGNORECASE | re.ASCII)
_SECONDS: Final = re.compile(r"\+?(?P<digits>\d{1,9})(?P<rest>.*)", re.DOTALL | re.ASCII)
_LONGEST_INTERFACE: Final = 15
# What pcap calls all interfaces.
_EVERY_INTERFACE: Final = frozenset(("any", "all", ""))


def sequence(setting: Setting) -> tuple[Port, ...]:
    """Read `7000,8000:udp`. Raises KnockdError, where knockd would sometimes have made port 0 of it."""
    words = [word.strip() for word in setting.value.split(",")]
    if len(words) > LONGEST_SEQUENCE:
        raise KnockdError(setting.line, f"{setting.written}: a sequence has at most {LONGEST_SEQUENCE} knocks")
    return tuple(_knock(setting, number, word) for number, word in enumerate(words, 1))


def _knock(setting: Setting, number: int, word: str) -> Port:
    match = _KNOCK.fullmatch(word)
    try:
        if match is not None:
            return Port(int(match["number"]), "udp" if (match["protocol"] or "").lower() == "udp" else "tcp")
    except ValueError:
        pass
    # Without the word: a daemon that reads its file anew says this in the log, and sequences are secret.
    mend = "is no port from 1 to 65535; write 7000 or 7000:udp"
    raise KnockdError(setting.line, f"{setting.written}: knock {number} {mend}")


def seconds(setting: Setting, report: Report, longest: int) -> int:
    """Read a whole number of seconds, 1 to `longest`, as knockd does: up to what is no digit. Raises KnockdError."""
    match = _SECONDS.fullmatch(setting.value)
    if match is None:
        raise KnockdError(setting.line, f"{setting.written}: {quote(setting.value)} is no number of seconds")
    read = int(match["digits"])
    within = min(max(read, 1), longest)
    if match["rest"]:
        report.add(setting.line, "changed", f"{setting.written}: {quote(setting.value)} is read as {read} s")
    if within != read:
        report.add(setting.line, "changed", f"{setting.written}: {read} s becomes {within} s (1 to {longest} s)")
    return within


def tcpflags(setting: Setting, report: Report) -> str:
    """Read `syn,!ack`, in nfknock's spelling. Raises KnockdError."""
    flags: dict[str, str] = {}
    for written in setting.value.split(","):
        word = written.strip().lower()
        name = word.removeprefix("!").strip()
        if name not in TcpFlags.NAMES:
            known = ", ".join(TcpFlags.NAMES)
            raise KnockdError(setting.line, f"{setting.written}: {quote(written)} is no TCP flag; known are {known}")
        if name in flags:
            report.add(setting.line, "changed", f"{setting.written}: {name} is named twice, and the last counts")
        flags[name] = f"!{name}" if word.startswith("!") else name
    return ",".join(flags.values())


def ordinary_tcpflags(setting: Setting, report: Report, *, is_exact: bool) -> str:
    """Return the flags to write: those of the file, but for `syn,ack`, which was never meant as it reads."""
    flags = tcpflags(setting, report)
    # A client that connects sends a bare SYN.
    if TcpFlags.parse(flags).accepts(BARE_SYN.value):
        return flags
    if set(flags.split(",")) == {"syn", "ack"} and not is_exact:
        report.add(
            setting.line,
            "changed",
            f'{setting.written}: syn,ack becomes "syn": knockd opens to SYN+ACK packets alone there, which no ordinary '
            "client sends (import --exact keeps it)",
        )
        return "syn"
    report.add(
        setting.line, "unwise", f"{setting.written}: no ordinary client sends a packet with {flags}; `knock` does not"
    )
    return flags


def target(setting: Setting, report: Report) -> str:
    """Return the address; a host's name, which knockd's capture library looks up, is not carried over."""
    try:
        return str(as_source(setting.value))
    except ValueError:
        report.add(
            setting.line,
            "left out",
            f"{setting.written}: {quote(setting.value)} is no address; the knocks count at every address of this host",
        )
        return ""


def interface(setting: Setting, report: Report) -> str:
    """Return the interface's name; empty where knockd would listen on all, or on none that can be."""
    name = setting.value.strip("\"'")
    if name.lower() in _EVERY_INTERFACE:
        report.add(setting.line, "changed", f"{setting.written}: nfknock listens on all interfaces but loopback")
        return ""
    if len(name.encode()) > _LONGEST_INTERFACE or not name.isprintable() or any(c in ' /:!"' for c in name):
        report.add(
            setting.line,
            "left out",
            f"{setting.written}: {quote(name)} is no interface; nfknock listens on all but loopback",
        )
        return ""
    if name != setting.value:
        report.add(setting.line, "changed", f"{setting.written}: the quotes go")
    return name


def path(setting: Setting, report: Report) -> str:
    """Return the path. Raises KnockdError if there is none."""
    if not setting.value:
        raise KnockdError(setting.line, f"{setting.written}: no path stands behind the =")
    if "://" in setting.value or " " in setting.value:
        report.add(setting.line, "unwise", f"{setting.written}: {quote(setting.value)} looks wrong for a path")
    return setting.value
