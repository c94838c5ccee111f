"""What a call of ufw or of firewall-cmd does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from nfknock.core.model import Port
from nfknock.knockd.action import ADDRESSES, Action, Deed, UnfitError, ports_of
from nfknock.knockd.services import numbers, usual_ports

_PROFILES: Final = {"openssh": "ssh", "www": "http", "www full": "http,https"}
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_TAKE_VALUE: Final = ("--zone", "--timeout", "--add-rich-rule", "--remove-rich-rule")
_RICH_WORDS: Final = ("rule", "source", "port", "service", "accept")
_RICH_KEYS: Final = ("family", "priority", "address", "port", "protocol", "name")
_RICH: Final = re.compile(r"--(?P<verb>add|remove)-rich-rule")


def ufw(words: Sequence[str]) -> Action:
    """Say what `ufw WORDS` does. Raises UnfitError if that is neither an opening nor a closing."""
    rest = [word for word in words if word not in ("--force", "rule")]
    deed: Deed = "opens"
    if rest[:1] == ["delete"]:
        deed = "closes"
        rest.pop(0)
    if rest[:1] == ["insert"]:
        rest = rest[2:]
    elif rest[:1] == ["prepend"]:
        rest.pop(0)
    policy = rest.pop(0) if rest else ""
    if policy != "allow":
        raise UnfitError(f"`ufw {policy}` is not `ufw allow`, and a hole accepts")
    return _UfwRule(rest, deed).action()


class _UfwRule:
    """The words behind `ufw allow`."""

    def __init__(self, words: list[str], deed: Deed) -> None:
        self.deed: Deed = deed
        self.source = self.ports = self.protocol = self.application = ""
        self.remarks: list[str] = []
        while words:
            self._take(words.pop(0).lower(), words)

    def _take(self, word: str, rest: list[str]) -> None:
        match word:
            case "from":
                self.source = self._value(word, rest)
                if rest[:1] == ["port"]:
                    raise UnfitError("it names a port of the source")
            case "to":
                self._take_destination(self._value(word, rest), rest)
            case "proto":
                self.protocol = self._value(word, rest).lower()
            case "in":
                pass
            case "on":
                name = self._value(word, rest)
                self.remarks.append(f"on {name} goes: a hole counts on every interface that nfknock watches")
            case "comment":
                self._value(word, rest)
                self.remarks.append("its comment goes: a hole has its own")
            case _ if not self.source and (numbers(word.partition("/")[0]) or not rest):
                raise UnfitError(f"it has no `from %IP%`, so it {self.deed} for everybody")
            case _:
                raise UnfitError(f"{word!r} is something that a hole cannot say")

    def _take_destination(self, address: str, rest: list[str]) -> None:
        if address != "any":
            raise UnfitError(f"it is for the destination {address} alone")
        if rest[:1] == ["port"]:
            rest.pop(0)
            self.ports = self._value("port", rest)
        elif rest[:1] == ["app"]:
            rest.pop(0)
            self.application = self._value("app", rest)

    @staticmethod
    def _value(word: str, rest: list[str]) -> str:
        if not rest:
            raise UnfitError(f"nothing stands behind {word!r}")
        return rest.pop(0)

    def action(self) -> Action:
        """Put it together. Raises UnfitError."""
        if not self.source or self.source == "any":
            raise UnfitError(f"it has no `from %IP%`, so it {self.deed} for everybody")
        if self.source not in ADDRESSES:
            raise UnfitError(f"its source is {self.source!r} and not %IP%")
        return Action(deed=self.deed, ports=self._ports(), remarks=tuple(self.remarks))

    def _ports(self) -> frozenset[Port]:
        if self.application:
            if self.application.lower() not in _PROFILES:
                raise UnfitError(f"what the application {self.application!r} is stands in ufw's own files")
            return ports_of(_PROFILES[self.application.lower()], "tcp")
        if not self.ports:
            raise UnfitError(f"it names no port, so it {self.deed} everything for that source")
        number, slash, protocol = self.ports.partition("/")
        if slash and not self.protocol:
            return ports_of(number, protocol.lower())
        if self.protocol:
            return ports_of(self.ports, self.protocol)
        if usual := usual_ports(self.ports):
            return usual
        self.remarks.append("without proto, ufw means TCP and UDP")
        return ports_of(self.ports, "")


def firewall_cmd(words: Sequence[str]) -> Action:
    """Say what `firewall-cmd WORDS` does. Raises UnfitError if that is neither an opening nor a closing."""
    rest = list(words)
    rule: tuple[Deed, str] | None = None
    remarks: list[str] = []
    seconds: int | None = None
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not equals and name in _TAKE_VALUE and rest:
            value = rest.pop(0)
        if match := _RICH.fullmatch(name):
            if rule is not None:
                raise UnfitError("it has several rich rules")
            rule = ("opens" if match["verb"] == "add" else "closes", value)
        elif name == "--timeout":
            seconds = _seconds(value)
        elif name == "--zone":
            remarks.append(f"the zone {value} goes: a hole counts on every interface that nfknock watches")
        elif name == "--permanent":
            remarks.append("--permanent goes: a hole ends")
        elif name not in ("-q", "--quiet"):
            raise UnfitError(_about_firewall_cmd(name))
    deed, text = rule or ("other", "")
    return Action(deed=deed, ports=_rich_rule(text, deed), remarks=tuple(remarks), seconds=seconds)


def _about_firewall_cmd(name: str) -> str:
    if name in ("--add-port", "--add-service", "--remove-port", "--remove-service"):
        return f"{name} is not for %IP% but for everybody"
    if name in ("--add-source", "--remove-source"):
        return f"{name} is for whatever that zone allows, and which ports those are does not stand here"
    return f"{name} is something that a hole cannot say"


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,8})([smh]?)", text)
    if match is None:
        raise UnfitError(f"--timeout {text!r} is no time")
    return int(match[1]) * _UNITS[match[2]]


def _rich_rule(text: str, deed: Deed) -> frozenset[Port]:
    """Read `rule family=ipv4 source address=%IP% port port=22 protocol=tcp accept`. Raises UnfitError."""
    if not text:
        raise UnfitError("it has no rich rule, and no other kind can be for %IP% and a port")
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise UnfitError("the quotes in its rich rule do not close") from exc
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in (_RICH_KEYS if equals else _RICH_WORDS):
            raise UnfitError(f"{word!r} in its rich rule is something that a hole cannot say")
        # A word alone is kept apart from a key of the same name: `port port="22"`.
        values[key if equals else f"{key} "] = value
    return _rich_ports(values, deed)


def _rich_ports(values: dict[str, str], deed: Deed) -> frozenset[Port]:
    if "accept " not in values:
        raise UnfitError("its rich rule does not say accept")
    if "address" not in values:
        raise UnfitError(f"its rich rule has no source address, so it {deed} for everybody")
    if values["address"] not in ADDRESSES:
        raise UnfitError(f"its source is {values['address']!r} and not %IP%")
    if "service " in values and "port " not in values:
        return _service(values.get("name", ""))
    if "port" not in values or "protocol" not in values:
        raise UnfitError(f"it names no port, so it {deed} everything for that source")
    return ports_of(values["port"], values["protocol"].lower())


def _service(name: str) -> frozenset[Port]:
    if ports := usual_ports(name):
        return ports
    raise UnfitError(f"what the service {name!r} is stands in firewalld's own files")
