"""What a call of iptables or ip6tables does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nfknock.core.model import Port
from nfknock.knockd.action import ADDRESSES, Action, Deed, UnfitError, ports_of

PROGRAMS: Final = frozenset(
    f"{name}{variant}" for name in ("iptables", "ip6tables") for variant in ("", "-legacy", "-nft")
)

_LONG: Final = {
    "--append": "-A",
    "--insert": "-I",
    "--delete": "-D",
    "--policy": "-P",
    "--flush": "-F",
    "--table": "-t",
    "--source": "-s",
    "--src": "-s",
    "--protocol": "-p",
    "--proto": "-p",
    "--in-interface": "-i",
    "--match": "-m",
    "--jump": "-j",
    "--destination-port": "--dport",
    "--destination-ports": "--dports",
    "--wait": "-w",
    "--numeric": "-n",
    "--verbose": "-v",
}
_TAKE_VALUE: Final = frozenset(
    (
        *("-A", "-I", "-D", "-P", "-t", "-s", "-p", "-i", "-m", "-j"),
        *("--dport", "--dports", "--state", "--ctstate", "--comment"),
    )
)
# What people write with one hyphen where iptables wants two; it takes the first letter for the option.
_TWO_HYPHENS: Final = frozenset(("dport", "sport", "dports", "sports", "syn", "state", "ctstate", "comment"))
# En dash, em dash, minus: what a word processor makes of two hyphens.
_DASHES: Final = ("\u2013", "\u2014", "\u2212")
_PLAIN_MATCHES: Final = frozenset(("tcp", "udp", "multiport"))
_ELSEWHERE: Final = frozenset(("FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING", "DOCKER-USER"))


def iptables(words: Sequence[str]) -> Action:
    """Say what `iptables WORDS` does. Raises UnfitError if that is neither an opening nor a closing."""
    rule = _Rule()
    for option, value in _options(words):
        rule.take(option, value)
    return rule.action()


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield option and value; the number of `-I INPUT 1` and of `-w 5` belongs to what stands before it."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        _refuse_odd(word)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("--") and len(word) > 2 and word[:2] in _TAKE_VALUE:
            name, equals, value = word[:2], "=", word[2:]
        option = _LONG.get(name, name)
        if option in _TAKE_VALUE and not equals:
            if not rest:
                raise UnfitError(f"{name} has no value")
            value = rest.pop(0)
        if option in ("-I", "-w") and rest and rest[0].isdigit():
            rest.pop(0)
        yield option, value


def _refuse_odd(word: str) -> None:
    if word.startswith(_DASHES):
        raise UnfitError(f"{word!r} begins with a dash that is no hyphen; iptables wants --")
    if word.startswith("-") and word[1:].partition("=")[0] in _TWO_HYPHENS:
        raise UnfitError(f"{word} looks wrong; iptables wants -{word}")
    if word == "!":
        raise UnfitError("a ! turns a condition round, and a hole cannot say that")


class _Rule:
    """What is known of the rule while its options are read."""

    def __init__(self) -> None:
        self.verb = self.chain = self.target = self.protocol = self.source = ""
        self.ports = ""
        self.remarks: list[str] = []

    def take(self, option: str, value: str) -> None:
        match option:
            case "-A" | "-I" | "-D":
                self.verb, self.chain = option, value
            case "-P":
                raise UnfitError("it sets the policy of a whole chain")
            case "-F":
                raise UnfitError("it flushes a whole chain")
            case "-t" if value != "filter":
                raise UnfitError(f"it works on the table {value}")
            case "-s":
                self.source = value
            case "-p":
                self.protocol = {"6": "tcp", "17": "udp"}.get(value, value.lower())
            case "-j":
                self.target = value
            case "--dport" | "--dports":
                self.ports = value
            case _:
                self._take_condition(option, value)

    def _take_condition(self, option: str, value: str) -> None:
        match option:
            case "-i":
                self.remarks.append(f"-i {value} goes: a hole counts on every interface that nfknock watches")
            case "-m" if value in _PLAIN_MATCHES:
                pass
            case "-m" if value in ("state", "conntrack", "comment"):
                self.remarks.append(f"-m {value} goes: a hole needs none")
            case "--state" | "--ctstate":
                if "NEW" not in value.upper().split(","):
                    raise UnfitError(f"{option} {value} lets no new connection in")
            case "--syn":
                self.remarks.append("--syn goes: a hole needs none")
            case "-t" | "-w" | "-n" | "-v" | "--comment":
                pass
            case _ if option.isdigit():
                raise UnfitError("it names a rule by its number, which only the rules of that moment know")
            case _:
                raise UnfitError(f"{option}{' ' if value else ''}{value} is a condition that a hole cannot have")

    def action(self) -> Action:
        """Put it together. Raises UnfitError."""
        if not self.verb:
            raise UnfitError("it neither adds a rule nor deletes one")
        deed: Deed = "closes" if self.verb == "-D" else "opens"
        self._check_chain()
        if self.target != "ACCEPT":
            raise UnfitError(self._about_target())
        if not self.source:
            raise UnfitError(f"it has no -s %IP%, so it {deed} for everybody")
        if self.source not in ADDRESSES:
            raise UnfitError(f"its source is {self.source!r} and not %IP%")
        return Action(deed=deed, ports=self._ports(deed), remarks=tuple(self.remarks))

    def _check_chain(self) -> None:
        if self.chain in _ELSEWHERE:
            raise UnfitError(f"the chain {self.chain} is not for what is sent to this host")
        if self.chain != self.chain.upper() and self.chain.upper() in (*_ELSEWHERE, "INPUT"):
            raise UnfitError(f"the chain {self.chain!r} looks wrong; iptables wants {self.chain.upper()}")
        if self.chain != "INPUT":
            self.remarks.append(f"the chain {self.chain} goes: a hole stands in nfknock's own chain")

    def _about_target(self) -> str:
        if not self.target:
            return "it names no target"
        if self.target.upper() == "ACCEPT":
            return f"-j {self.target} looks wrong; iptables wants ACCEPT"
        return f"its target is {self.target}, and a hole accepts"

    def _ports(self, deed: Deed) -> frozenset[Port]:
        if not self.ports:
            raise UnfitError(f"it names no port, so it {deed} everything for that source")
        if not self.protocol:
            raise UnfitError("it has a --dport but no -p, which iptables refuses")
        return ports_of(self.ports, self.protocol)
