"""What others do to a firewall: in words that every backend has, done with the tools that each one's rules are for."""

from __future__ import annotations

from tests.lab import Lab
from tests.setting import CHOSEN

LEGACY = ("iptables-legacy", "ip6tables-legacy")
IS_NFTABLES = CHOSEN.backend == "nftables"

_OTHERS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp --dport 99 -j DROP
COMMIT
"""
_OTHERS_NFT = """flush ruleset
table inet others { chain in { type filter hook input priority 0; tcp dport 99 drop; }; }
"""
# A line for iptables is done for IPv4, after "6 " for IPv6, after "4+6 " for both; one for nft is a command, where
# "delete rule CHAIN" means the first rule of a chain of nfknock's.
_DAMAGE = {
    "another ruleset": ([""], [""]),
    "flush": (["4+6 -F"], ["flush ruleset"]),
    "one family": (["6 -F"], ["insert rule inet nfknock main meta nfproto ipv6 return"]),
    "flush and delete": (["-F", "-X"], ["delete table inet nfknock"]),
    "the jump": (["4+6 -D INPUT 1"], ["flush chain inet nfknock input"]),
    "the policy": (["-P INPUT ACCEPT"], ["chain inet nfknock input { policy accept; }"]),
    "one rule": (["-D NFKNOCK 2"], ["delete rule main"]),
    "another rule": (["-I NFKNOCK -j ACCEPT"], ["insert rule inet nfknock main accept"]),
    # A rule among the holes that is none is looked for when a daemon starts, where there are rules for holes.
    "another hole": ([], ["insert rule inet nfknock holes tcp dport 23 accept"]),
    "at once": (["-F NFKNOCK_AT_ONCE"], ["flush chain inet nfknock at_once"]),
    "the copies": (["-D NFKNOCK_COPIES 1"], ["delete rule copies"]),
    "flush FORWARD": (["4+6 -F FORWARD"], ["flush chain inet nfknock forward"]),
    "delete FORWARD": (
        ["4+6 -F FORWARD", "4+6 -F NFKNOCK_FORWARD", "4+6 -X NFKNOCK_FORWARD", "4+6 -F NFKNOCK_FORWARD_HOLES"],
        ["delete chain inet nfknock forward", "flush chain inet nfknock forward_holes"],
    ),
    "one rule of FORWARD": (["4+6 -D NFKNOCK_FORWARD 1"], ["delete rule forwarded"]),
    "another rule of FORWARD": (["4+6 -I NFKNOCK_FORWARD -j ACCEPT"], ["insert rule inet nfknock forwarded accept"]),
    "in front": (["4+6 -I FORWARD -j ACCEPT"], ["insert rule inet nfknock forward accept"]),
    "another jump": (
        ["-D FORWARD 1", "-I FORWARD -s 203.0.113.1 -j NFKNOCK_FORWARD"],
        ["flush chain inet nfknock forward", "add rule inet nfknock forward ip saddr 203.0.113.1 jump forwarded"],
    ),
}


def kinds(*names: str) -> list[str]:
    """Return those kinds of damage that can be done to the backend that the tests run with."""
    return [name for name in names if _DAMAGE[name][IS_NFTABLES]]


def vandalise(lab: Lab, kind: str) -> None:
    """Do that to the bastion's firewall."""
    if kind == "another ruleset":
        _load_another(lab)
        return
    for line in _DAMAGE[kind][IS_NFTABLES]:
        if IS_NFTABLES:
            words = line.split()
            if words[:2] == ["delete", "rule"]:
                line = f"delete rule inet nfknock {words[2]} handle {_first_handle(lab, words[2])}"  # noqa: PLW2901
            lab.bastion.run("nft", line)
        else:
            _legacy(lab, line)


def _legacy(lab: Lab, line: str) -> None:
    which, _, rest = line.partition(" ")
    commands, arguments = {"4+6": (LEGACY, rest), "6": (LEGACY[1:], rest)}.get(which, (LEGACY[:1], line))
    for command in commands:
        lab.bastion.run(command, *arguments.split())


def _first_handle(lab: Lab, chain: str) -> str:
    """Return the handle of the first rule of a chain of nfknock's, which nft wants to know to take it out."""
    listing = lab.bastion.run("nft", "--handle", "list", "chain", "inet", "nfknock", chain).stdout
    return next(line for line in listing.splitlines()[2:] if " comment " in line).split()[-1]


def _load_another(lab: Lab) -> None:
    if IS_NFTABLES:
        lab.bastion.run("nft", "-f", "-", stdin=_OTHERS_NFT)
        return
    for command in LEGACY:
        lab.bastion.run(f"{command}-restore", stdin=_OTHERS)


def has_rule_of_others(lab: Lab) -> bool:
    """Whether what "another ruleset" brought is there."""
    return "tcp dport 99 drop" in lab.rules() or "--dport 99 -j DROP" in lab.rules()


def own_rules(lab: Lab) -> list[str]:
    """Return what is nfknock's, holes included, without the order in which chains were made."""
    if not IS_NFTABLES:
        rules = lab.rules()
        return [line for line in rules.splitlines() if _is_of_ours(line)] if "NFKNOCK" in rules else []
    listing = lab.bastion.run("nft", "--stateless", "--terse", "list", "table", "inet", "nfknock", check=False)
    blocks = [block.strip() for block in listing.stdout.removeprefix("table inet nfknock {").split("\n\n")]
    blocks = [block.removesuffix("\n}") for block in blocks if block]
    return [*sorted(blocks), *(line for line in lab.rules().splitlines() if "nfknock hole" in line)]


def _is_of_ours(line: str) -> bool:
    """Whether a line of iptables-save is nfknock's, the policy included; what `remove` goes by is not looked at."""
    return ("NFKNOCK" in line and "NFKNOCK_FOUND" not in line) or line.startswith((":INPUT", "-A f4_", "-A h4_"))
