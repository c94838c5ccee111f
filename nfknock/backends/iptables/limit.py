"""The match that says of whom there were too many knocks: the extension hashlimit."""

from __future__ import annotations

from nfknock.backends.xtables.binding import Options
from nfknock.core.model import Family
from nfknock.core.plan import KNOCKS_AT_ONCE, LIMITED_FOR, MOST_LIMITED

# Of revision 3 (Linux 4.18), the first that keeps high rates as they are said.
NAME, REVISION = "hashlimit", 3


def limit_by_source(a_second: int, family: Family) -> tuple[str, Options]:
    """Return the match for a source that has had its share. Behind the ports, as it counts whatever it sees."""
    options = {
        "above": f"{a_second}/sec",
        "burst": str(max(a_second, KNOCKS_AT_ONCE)),
        "mode": "srcip",
        # Whoever has one IPv6 address has as many as they like.
        **({"srcmask": "64"} if family == "ipv6" else {}),
        # All rules of that name share a table, which keeps the rate that it was made with: another rate, another name.
        "name": f"nfknock-{a_second}",
        "htable-size": str(MOST_LIMITED >> 3),
        "htable-max": str(MOST_LIMITED),
        "htable-expire": str(LIMITED_FOR * 1000),
        "htable-gcinterval": "1000",
    }
    return (NAME, tuple((f"hashlimit-{name}", value) for name, value in options.items()))
