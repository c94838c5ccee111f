"""A command of knockd.conf: what it does, and how it can be run without pasting the address into a shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nfknock.knockd.action import Action, UnfitError
from nfknock.knockd.frontends import firewall_cmd, ufw
from nfknock.knockd.iptables import PROGRAMS, iptables
from nfknock.knockd.nft import nft
from nfknock.knockd.shell import ADDRESS, Script, positional, split

_READERS: Final[dict[str, Callable[[Sequence[str]], Action]]] = {
    **dict.fromkeys(PROGRAMS, iptables),
    "ufw": ufw,
    "firewall-cmd": firewall_cmd,
    "nft": nft,
}
# They change the firewall too, but never open a port for an address by themselves.
_OTHER_FIREWALLS: Final = frozenset(
    ("ipset", "pfctl", "iptables-restore", "ip6tables-restore", "ipfw", "csf", "shorewall", "apf", "knock_add")
)
_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "ksh", "zsh"))
_VERBS: Final = frozenset(
    ("-A", "-I", "-D", "--append", "--insert", "--delete", "1", "allow", "delete", "insert", "add", "rule", "--force")
)

# What people write in place of %IP%, and what knockd passes on as it stands.
_ODD_ADDRESS: Final = re.compile(r"%%+IP%|%IP%%+|%IP(?!%)|(?<!%)\bIP%|%ip%", re.ASCII)
# How people delete a rule with nft, which knows rules by their handles alone: look for the address, take the handle.
_BY_HANDLE: Final = re.compile(
    r"(?:\S*sudo\s+)?(?:\S*/)?nft\s+delete\s+rule\s+(?:[\w-]+\s+){2,3}handle\s+\"?"
    rf"\$\((?:sudo\s+)?(?:\S*/)?nft\s[^|;&]*\blist\b[^|;&]*\|[^;&<>`()]*{ADDRESS}[^;&<>`]*\)\"?",
    re.ASCII,
)
_RELOADS: Final = (("firewall-cmd", "--reload"), ("ufw", "reload"))


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it stands in the file, what it does, and the arguments that run it.

    `shell` says why the arguments call a shell; it is empty if they do not. `key` is as it was written.
    """

    line: int
    key: str
    text: str
    action: Action
    arguments: tuple[str, ...]
    shell: str = ""
    comment: str = ""

    @property
    def condition(self) -> frozenset[str]:
        """Its words but for those that say add or delete: what an opening and its closing have in common."""
        words = [word for part in _unwrapped(split(self.text)).parts for word in _bare(part)]
        return frozenset(words) - _VERBS


def understand(line: int, key: str, text: str) -> Command:
    """Read a command; never raises and runs nothing."""
    script = split(text)
    arguments, shell = _arguments(text, script)
    return Command(line, key, text, recognise(text), arguments, shell, script.comment)


def recognise(text: str) -> Action:
    """Say what a command does: opens ports for %IP%, closes them, or something else and why."""
    if odd := _ODD_ADDRESS.search(text):
        return Action(deed="other", reason=f"{odd[0]} looks wrong; knockd replaces %IP% alone", program=_program(text))
    if _BY_HANDLE.fullmatch(text):
        remark = "it looks for the rule by its address; a hole needs no looking for"
        return Action(deed="closes", remarks=(remark,), program="nft")
    script = _unwrapped(split(text))
    if script.needs_shell or not script.parts:
        return Action(deed="other", program=_program(text))
    actions = [_recognise_part(part) for part in script.parts if _bare(part) not in _RELOADS]
    if not actions:
        return Action(deed="other", reason="it only reloads the firewall", program=_program(text))
    if len(actions) == 1 and len(script.parts) == 1:
        return actions[0]
    return _together(actions, has_reload=len(actions) < len(script.parts))


def _together(actions: list[Action], *, has_reload: bool) -> Action:
    """What several commands do in a row: an opening if each is one, and so with a closing."""
    first = actions[0]
    deeds = {action.deed for action in actions}
    if len(deeds) > 1 or first.deed == "other":
        reasons = [action.reason for action in actions if action.reason]
        reason = "its parts do different things" if len(deeds) > 1 else (reasons[0] if reasons else "")
        program = next((action.program for action in actions if action.program), "")
        return Action(deed="other", reason=reason, program=program)
    remarks = dict.fromkeys(remark for action in actions for remark in action.remarks)
    if has_reload:
        remarks["reloading the firewall goes: a hole needs none"] = None
    limits = [action.seconds for action in actions if action.seconds is not None]
    return replace(
        first,
        ports=frozenset(port for action in actions for port in action.ports),
        remarks=tuple(remarks),
        seconds=min(limits) if limits else None,
    )


def _recognise_part(words: tuple[str, ...]) -> Action:
    program, *rest = _bare(words) or ("",)
    if program not in _READERS:
        return Action(deed="other", program=program if program in _OTHER_FIREWALLS else "")
    try:
        return replace(_READERS[program](rest), program=program)
    except UnfitError as exc:
        return Action(deed="other", reason=str(exc), program=program)


def _bare(words: tuple[str, ...]) -> tuple[str, ...]:
    """The call without sudo and without the path of the program."""
    rest = list(words)
    if rest and rest[0].rpartition("/")[2] == "sudo":
        rest.pop(0)
        while rest and rest[0] in ("-n", "-H", "-E", "--"):
            rest.pop(0)
    return (rest[0].rpartition("/")[2], *rest[1:]) if rest else ()


def _unwrapped(script: Script) -> Script:
    """The script that `sh -c SCRIPT` would run."""
    if not script.needs_shell and len(script.parts) == 1 and _calls_shell(script.parts[0]):
        return split(script.parts[0][-1])
    return script


def _calls_shell(words: tuple[str, ...]) -> bool:
    """Whether the last word is a script for the shell that the others call, by way of sudo perhaps."""
    *_, program, option, _script = ("", "", "", *words)
    return program.rpartition("/")[2] in _SHELLS and re.fullmatch(r"-[a-z]*c", option) is not None


def _program(text: str) -> str:
    """The firewall's program that is named somewhere in a text that cannot be split."""
    words = re.findall(r"[a-z0-9][a-z0-9-]*", text)
    return next((word for word in words if word in _READERS or word in _OTHER_FIREWALLS), "")


def _arguments(text: str, script: Script) -> tuple[tuple[str, ...], str]:
    """The argument list that does the same, and why it calls a shell, if it does."""
    if not text:
        return (), ""
    why = script.needs_shell
    if len(script.parts) != 1:
        why = why or ("several commands in a row" if script.parts else "there being no command")
    elif script.comment:
        why = why or "the comment behind it"
    if why:
        return ("/bin/sh", "-c", positional(text), "sh", ADDRESS), why
    words = script.parts[0]
    if _calls_shell(words) and ADDRESS in words[-1]:
        return (*words[:-1], positional(words[-1]), "sh", ADDRESS), "it calling one itself"
    return words, ""
