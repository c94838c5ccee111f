"""The names that people write for ports.

Not the system's list: the result must not depend on the host that the import runs on.
"""

from __future__ import annotations

from nfknock.core.model import Port, Protocol

_TCP = {
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "http": 80,
    "www": 80,
    "pop3": 110,
    "imap": 143,
    "imap2": 143,
    "https": 443,
    "smtps": 465,
    "submissions": 465,
    "submission": 587,
    "rsync": 873,
    "ftps": 990,
    "imaps": 993,
    "pop3s": 995,
    "socks": 1080,
    "mysql": 3306,
    "rdp": 3389,
    "ms-wbt-server": 3389,
    "svn": 3690,
    "postgresql": 5432,
    "postgres": 5432,
    "vnc-server": 5900,
    "webmin": 10000,
    "http-alt": 8080,
}
_UDP = {"tftp": 69, "ntp": 123, "isakmp": 500, "openvpn": 1194, "wireguard": 51820}
_BOTH = {"domain": 53, "dns": 53}

# As many ports as one rule of iptables' multiport takes.
_LONGEST_RANGE = 15


def numbers(text: str) -> tuple[int, ...] | None:
    """Return the ports of `22`, `ssh`, `22,80`, `6000:6005` or `6000-6005`; None for what is none, or too many."""
    found: list[int] = []
    for word in text.split(","):
        first, _, last = word.strip().lower().replace("-", ":").partition(":")
        if (name := _TCP | _UDP | _BOTH).get(word.strip().lower()):
            found.append(name[word.strip().lower()])
        elif _is_port(first) and (not last or _is_port(last)):
            found.extend(range(int(first), int(last or first) + 1))
        else:
            return None
        if len(found) > _LONGEST_RANGE:
            return None
    return tuple(dict.fromkeys(found)) or None


def usual_ports(name: str) -> frozenset[Port]:
    """Return the ports of a service whose protocol is not said; empty for a name that is not known."""
    name = name.lower()
    tables: tuple[tuple[Protocol, dict[str, int]], ...] = (("tcp", _TCP | _BOTH), ("udp", _UDP | _BOTH))
    return frozenset(Port(table[name], protocol) for protocol, table in tables if name in table)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
