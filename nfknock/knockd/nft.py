"""What a call of nft does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nfknock.knockd.action import ADDRESSES, Action, Deed, UnfitError, ports_of

_FAMILIES: Final = frozenset(("ip", "ip6", "inet"))
_VERBS: Final[dict[str, Deed]] = {"add": "opens", "insert": "opens", "delete": "closes"}
_PROTOCOLS: Final = frozenset(("tcp", "udp"))
_WORDS_BEFORE_TABLE: Final = 2


def nft(words: Sequence[str]) -> Action:
    """Say what `nft WORDS` does. Raises UnfitError if that is neither an opening nor a closing."""
    # The whole may stand in one pair of quotes, and braces need no blanks around them.
    rest = " ".join(words).replace("{", " { ").replace("}", " } ").replace(",", " , ").replace(";", " ; ").split()
    verb, kind = (*rest, "", "")[:_WORDS_BEFORE_TABLE]
    if kind == "element":
        raise UnfitError("it puts the address into a set, and which ports that opens stands in the ruleset")
    if verb not in _VERBS or kind != "rule":
        raise UnfitError("it is neither `nft add rule` nor `nft delete rule`")
    rest = rest[_WORDS_BEFORE_TABLE:]
    family = rest.pop(0) if rest and rest[0] in _FAMILIES else "ip"
    if len(rest) < _WORDS_BEFORE_TABLE:
        raise UnfitError("it names no table and chain")
    chain = rest[1]
    if chain.lower() in ("forward", "output", "prerouting", "postrouting"):
        raise UnfitError(f"the chain {chain} is not for what is sent to this host")
    rule = _Rule(rest[_WORDS_BEFORE_TABLE:])
    rule.read()
    deed = _VERBS[verb]
    place = f"the chain {family} {rest[0]} {chain} goes: a hole stands in nfknock's own chain"
    remarks = [place, *rule.remarks]
    if deed == "closes":
        remarks.append("nft deletes a rule by its handle alone, so knockd's command failed, and it stayed open")
    return rule.action(deed, tuple(remarks))


class _Rule:
    """The words of a rule, taken one condition at a time."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.source = self.ports = self.protocol = self.verdict = ""
        self.remarks: list[str] = []

    def read(self) -> None:
        while self.words:
            self._take(self.words.pop(0))

    def _take(self, word: str) -> None:
        match word, self.words[:1]:
            case (("ip" | "ip6"), ["saddr"]):
                self.words.pop(0)
                self.source = self._value()
            case (("tcp" | "udp"), ["dport"]):
                self.words.pop(0)
                self.protocol, self.ports = word, self._value()
            case "ct", ["state"]:
                self.words.pop(0)
                if "new" not in self._value().split(","):
                    raise UnfitError("its `ct state` lets no new connection in")
                self.remarks.append("`ct state` goes: a hole needs none")
            case "meta", ["l4proto" | "nfproto"]:
                self.words.pop(0)
                self._value()
            case (("iif" | "iifname"), _):
                name = self._value()
                self.remarks.append(f"{word} {name} goes: a hole counts on every interface that nfknock watches")
            case _:
                self._take_statement(word)

    def _take_statement(self, word: str) -> None:
        match word:
            case "accept":
                self.verdict = word
            case "counter":
                pass
            case "comment":
                # Its quotes are gone, so where it ends cannot be seen; it stands last.
                self.words.clear()
                self.remarks.append("its comment goes: a hole has its own")
            case "handle" | "position" | "index":
                raise UnfitError(f"it names a rule by its {word}, which only the ruleset of that moment knows")
            case _:
                raise UnfitError(f"{word!r} is something that a hole cannot say")

    def _value(self) -> str:
        """One word, or a set in braces as words with commas between them. Raises UnfitError."""
        if not self.words:
            raise UnfitError("it ends too early")
        word = self.words.pop(0)
        closing = "}" in self.words
        if word == "{" and closing:
            end = self.words.index("}")
            word = "".join(self.words[:end])
            self.words = self.words[end + 1 :]
        while self.words[:1] == [","]:
            word += "," + "".join(self.words[1:2])
            self.words = self.words[2:]
        return word

    def action(self, deed: Deed, remarks: tuple[str, ...]) -> Action:
        """Put it together. Raises UnfitError."""
        if self.verdict != "accept":
            raise UnfitError("it does not say accept")
        if not self.source:
            raise UnfitError(f"it has no `ip saddr %IP%`, so it {deed} for everybody")
        if self.source not in ADDRESSES:
            raise UnfitError(f"its source is {self.source!r} and not %IP%")
        if self.protocol not in _PROTOCOLS:
            raise UnfitError(f"it names no port, so it {deed} everything for that source")
        return Action(deed=deed, ports=ports_of(self.ports, self.protocol), remarks=remarks)
