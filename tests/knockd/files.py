"""Files that the tests import, and how they look at what became of them."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

from nfknock.config import Config, load
from nfknock.knockd import Conversion, convert

TUTORIAL = """\
[options]
\tUseSyslog

[openSSH]
\tsequence    = 7000,8000,9000
\tseq_timeout = 5
\tcommand     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
\ttcpflags    = syn

[closeSSH]
\tsequence    = 9000,8000,7000
\tseq_timeout = 5
\tcommand     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
\ttcpflags    = syn
"""

TIMED_TUTORIAL = """\
[options]
        logfile = /var/log/knockd.log

[opencloseSSH]
        sequence      = 2222:udp,3333:tcp,4444:udp
        seq_timeout   = 15
        tcpflags      = syn,ack
        start_command = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
        cmd_timeout   = 10
        stop_command  = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT
"""

# Knocks that no rule about sequences has anything to say about.
KNOCKS = "7101,8203:udp,5307"
OTHER_KNOCKS = "6101,9203:udp,4307"


def door(*lines: str, name: str = "ssh", sequence: str = KNOCKS) -> str:
    """A section with the values that need no note."""
    return "\n".join([f"[{name}]", f"sequence = {sequence}", "seq_timeout = 5", "tcpflags = syn", *lines, ""])


def config(*doors: str) -> bytes:
    """A file with options that need no note; the first door's own lines begin at line 7."""
    return "\n".join(["[options]", "interface = eth0", *doors]).encode()


def doors_of(conversion: Conversion) -> dict[str, Any]:
    """The [doors] of the TOML."""
    tables: dict[str, Any] = tomllib.loads(conversion.text)["doors"]
    return tables


def import_door(*lines: str) -> dict[str, Any]:
    """What becomes of a file with this one door."""
    [made] = doors_of(convert(config(door(*lines)))).values()
    assert isinstance(made, dict)
    return made


def notes(conversion: Conversion) -> list[str]:
    """The notes as one text each: `7 changed: ...`."""
    return [f"{note.line} {note.kind}: {note.text}" for note in conversion.notes]


def checked(text: str) -> Config:
    """What `check` reads; the files of one-time sequences need not be there."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "nfknock.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, tolerates="anything")
