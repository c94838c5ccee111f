"""The file's sections as msgspec reads them: shapes only, meaning comes in `load`.

The keys are those of docs/configuration.md. Unknown keys are errors: a misspelt key that is silently ignored would
leave a door shut, or open, against its owner's will.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import msgspec

Duration = str | int | float


class Allow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of `firewall.allow` that is not open to everybody."""

    open: str | int | list[str | int] | None = None
    source: str | list[str] | None = msgspec.field(name="from", default=None)
    interface: str | None = None


class Firewall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [firewall]."""

    backend: Literal["auto", "iptables", "ipset", "nftables"] = "iptables"
    attach: str = ""
    set_size: int = 65536
    interfaces: list[str] = []
    allow: list[str | int | Allow] = []
    rules: str = ""
    repair: bool = True


class Reader(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [reader]."""

    kind: Literal["nfqueue", "nflog"] = "nfqueue"
    queue: int = 5
    answer: Literal["drop", "reject"] = "drop"


class Guard(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [guard]."""

    strays: bool = True
    group: int | None = None
    ports: int = 20
    within: Duration = "10s"
    ignore_timeout: Duration = "60s"
    knocks_a_second: int = 0


class Daemon(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [daemon]."""

    user: str = ""


class Log(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [log]."""

    syslog: bool = False
    file: str = ""


class Forward(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of a door's `open` that leads to a host behind this one."""

    port: str | int
    to: str


class Door(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of [doors.NAME]."""

    sequence: list[str | int] | None = None
    open: list[str | int | Forward] | None = None
    seq_timeout: Duration = "5s"
    open_timeout: Duration | None = None
    close_sequence: list[str | int] = []
    tcpflags: str | None = None
    target: str | None = None
    one_time_sequences: str | None = None
    one_time_look_ahead: int | None = None
    start_command: list[str] | None = None
    start_command_6: list[str] | None = None
    stop_command: list[str] | None = None
    stop_command_6: list[str] | None = None
    cmd_timeout: Duration | None = None
    run_timeout: Duration | None = None
    cut_sessions: bool = False


class BaselineRule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of a [[rule]] in a rules file."""

    comment: str
    verdict: Literal["accept", "drop"] = "accept"
    family: Literal["ipv4", "ipv6"] | None = None
    interface: str | None = None
    state: list[Literal["NEW", "ESTABLISHED", "RELATED", "INVALID"]] = []
    protocol: Literal["tcp", "udp", "icmp", "icmpv6"] | None = None
    source: str | None = msgspec.field(name="from", default=None)
    source_port: int | None = None
    ports: list[int] = []
    icmp_type: int | None = None
    hop_limit: int | None = None


_Section = TypeVar("_Section", bound=msgspec.Struct)
# knockd's other names for these.
_KNOCKD = {"command": "start_command", "command_6": "start_command_6", "timeout": "seq_timeout"}
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<where>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_ENUM = re.compile(r"Invalid enum value (?P<value>.*)")


def read_section(raw: Any, kind: type[_Section], path: str) -> _Section:
    """Give a section its type. Raises ValueError that begins with the key path."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        raise ValueError(_explain(str(exc), kind, path)) from exc


def _explain(message: str, kind: type[msgspec.Struct], path: str) -> str:
    match = _AT.match(message)
    assert match is not None  # every text matches
    what, where = match["what"], path + (match["where"] or "")
    known = [field.encode_name for field in msgspec.structs.fields(_table_at(kind, match["where"] or ""))]
    if unknown := _UNKNOWN.match(what):
        near = [_KNOCKD[key] for key in [unknown["key"].lower()] if _KNOCKD.get(key) in known]
        near = near or difflib.get_close_matches(unknown["key"], known, 1)
        mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{where}.{unknown['key']}: unknown key; {mend}"
    if missing := _MISSING.match(what):
        return f"{where}: the key {missing['key']!r} is missing"
    if enum := _ENUM.match(what):
        return f"{where}: {enum['value']} is not known{_choices(kind, where.rpartition('.')[2])}"
    return f"{where}: {what[:1].lower()}{what[1:].replace('`', '').replace(' | null', '')}"


def _table_at(kind: type[msgspec.Struct], where: str) -> type[msgspec.Struct]:
    """Return what a table in a list is, by its place (`.allow[0]`); the section itself for anything else."""
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        if re.fullmatch(rf"\.{field.encode_name}\[\d+\]", where):
            for each in _kinds(field.type):
                if isinstance(each, msgspec.inspect.StructType):
                    return each.cls
    return kind


def _kinds(kind: Any) -> Iterator[Any]:
    """Yield a type, and those that it is a choice of or a list of."""
    yield kind
    for each in (*getattr(kind, "types", ()), *filter(None, [getattr(kind, "item_type", None)])):
        yield from _kinds(each)


def _choices(kind: type[msgspec.Struct], key: str) -> str:
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        if field.encode_name == key.partition("[")[0]:
            kinds = (field.type, *getattr(field.type, "types", ()), getattr(field.type, "item_type", None))
            values = [value for each in kinds for value in getattr(each, "values", ())]
            return f"; known are {', '.join(map(str, values))}"
    return ""
