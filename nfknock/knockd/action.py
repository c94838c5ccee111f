"""What a command does to the firewall, as far as a door is concerned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nfknock.core.model import Port, Protocol
from nfknock.knockd.services import numbers
from nfknock.knockd.shell import ADDRESS

Deed = Literal["opens", "closes", "other"]

# The address alone, or as the network of that one address.
ADDRESSES = frozenset((ADDRESS, f"{ADDRESS}/32", f"{ADDRESS}/128"))


class UnfitError(Exception):
    """A firewall command that no hole stands for; the text says why. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What one command does.

    A closing without `ports` closes whatever its program opened for the address. `reason` says why an "other" is no
    opening and no closing. `remarks` say what a hole does not carry over. `seconds` is the command's own time limit.
    `program` is the firewall's program, empty for any other command.
    """

    deed: Deed
    ports: frozenset[Port] = frozenset()
    reason: str = ""
    remarks: tuple[str, ...] = ()
    seconds: int | None = None
    program: str = ""

    def undoes(self, opening: Action) -> bool:
        """Whether this closes what that opened. A rule without a protocol (ufw) is undone by one with."""
        if self.deed != "closes" or opening.deed != "opens":
            return False
        if self.ports == opening.ports:
            return True
        if not self.ports:
            return self.program == opening.program
        mine, theirs = ({port.number for port in each.ports} for each in (self, opening))
        return mine == theirs and self.program == opening.program == "ufw"


def ports_of(text: str, protocol: str) -> frozenset[Port]:
    """Return the ports of a rule. Raises UnfitError."""
    kinds: dict[str, tuple[Protocol, ...]] = {"tcp": ("tcp",), "udp": ("udp",), "": ("tcp", "udp")}
    found = numbers(text)
    if protocol not in kinds:
        raise UnfitError(f"protocol {protocol}, and a hole is for TCP or UDP")
    if found is None:
        raise UnfitError(f"{text!r} is no port, no service that the importer knows, or too long a range")
    return frozenset(Port(number, kind) for number in found for kind in kinds[protocol])
