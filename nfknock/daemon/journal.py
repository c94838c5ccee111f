"""Stop commands that are still to be run, on disk: they must be run once, whatever becomes of the daemon.

The kernel knows holes; nobody knows what a start command did. So before it is run its stop command is written down
here, and the note goes when that has been started. A daemon that starts takes up the notes of its network namespace,
and those of an earlier boot, whose namespaces are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nfknock import files
from nfknock.daemon import logs
from nfknock.daemon.process import Call
from nfknock.errors import DaemonError


def state_directory() -> Path:
    """Where the notes are: $NFKNOCK_STATE_DIR, else /var/lib/nfknock."""
    return Path(os.environ.get("NFKNOCK_STATE_DIR") or "/var/lib/nfknock")


_LONGEST_NOTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A stop command that is owed. `stop_at` is in epoch seconds; None: when the closing sequence is knocked."""

    call: Call
    stop_at: float | None
    cmd_timeout: float | None
    name: str

    def remaining(self, now: float) -> float | None:
        """Return the seconds until it is due at `now`; a clock that was set back does not put it off."""
        if self.stop_at is None or self.cmd_timeout is None:
            return None
        return min(max(0.0, self.stop_at - now), self.cmd_timeout)


class Journal:
    """The notes of one network namespace."""

    def __init__(self) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        self._boot = f"stop-{boot}-"
        self._prefix = f"{self._boot}{Path('/proc/self/ns/net').stat().st_ino}-"
        self._directory = state_directory()

    def prepare(self) -> None:
        """Make sure that notes can be written. Raises DaemonError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self._directory / f"{self._prefix}probe"
            files.replace(probe, b"")
            probe.unlink()
        except OSError as exc:
            raise DaemonError(
                f"noting stop commands in {self._directory}: {(exc.strerror or str(exc)).lower()}; "
                "run this as root, or set NFKNOCK_STATE_DIR"
            ) from exc

    def fresh_name(self) -> str:
        """Return a name for a new note."""
        return f"{self._prefix}{secrets.token_hex(8)}"

    def write(self, note: Note) -> None:
        """Have a note on the disk, in place of an earlier one of its name. Raises OSError."""
        call = note.call
        content = {
            "door": call.door,
            "source": str(call.source),
            "arguments": call.arguments,
            "run_timeout": call.run_timeout,
            "stop_at": note.stop_at,
            "cmd_timeout": note.cmd_timeout,
        }
        files.replace(self._directory / note.name, json.dumps(content).encode())

    def remove(self, name: str) -> None:
        """Drop a note. Raises OSError."""
        (self._directory / name).unlink(missing_ok=True)
        files.sync_directory(self._directory)

    def take_up(self) -> Iterator[Note]:
        """Yield the notes that another daemon left here."""
        for rest in self._directory.glob(f".{self._prefix}*.new"):
            with contextlib.suppress(OSError):
                rest.unlink(missing_ok=True)  # of a daemon that was killed while it wrote
        for path in sorted(self._directory.glob("stop-*-*-*")):
            if path.name.startswith(self._boot) and not path.name.startswith(self._prefix):
                continue  # the daemon of another network namespace of this machine
            try:
                name = path.name
                if not name.startswith(self._prefix):
                    name = self.fresh_name()
                    path.rename(self._directory / name)
                yield _parse(json.loads(_read_own(self._directory / name)), name)
            except FileNotFoundError:
                continue  # another daemon was first
            except (OSError, ValueError, TypeError, KeyError) as exc:
                logs.log.error("the noted stop command in %s cannot be read: %s", path, exc)


def _read_own(path: Path) -> bytes:
    """Read a note. Raises ValueError for one that somebody else may have written: it will be run with our rights."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ValueError("somebody else can write it")
        return file.read(_LONGEST_NOTE)


def _parse(content: dict[str, Any], name: str) -> Note:
    call = Call(
        door=str(content["door"]),
        source=ip_address(content["source"]),
        arguments=tuple(map(str, content["arguments"])),
        run_timeout=float(content["run_timeout"]),
    )
    stop_at, cmd_timeout = content["stop_at"], content["cmd_timeout"]
    return Note(
        call=call,
        stop_at=None if stop_at is None else float(stop_at),
        cmd_timeout=None if cmd_timeout is None else float(cmd_timeout),
        name=name,
    )
