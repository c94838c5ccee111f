"""The role's module that knocks and connects: at addresses of which this host may have no way to some."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.role import ROLE, something_like_ssh

_FILE = ROLE / "library/nfknock_reach.py"
_SPEC = importlib.util.spec_from_file_location("nfknock_reach", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
reach_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reach_module)

# To a network's broadcast address no socket may send that did not ask for it: as good as no way there.
NO_WAY = (socket.AF_INET, ("255.255.255.255", 0))
# And one of a kind that no kernel has.
NO_FAMILY = (socket.AF_UNSPEC, ("::1", 0))
HERE = (socket.AF_INET, ("127.0.0.1", 0))
UDP_KNOCK = [(7101, False)]


@pytest.fixture
def port() -> Iterator[int]:
    """Something that answers as SSH does."""
    with something_like_ssh() as number:
        yield number


def wanted(port: int, timeout: float = 10) -> dict[str, Any]:
    return {"port": port, "banner": "SSH-", "timeout": timeout}


@pytest.mark.parametrize("addresses", [[NO_WAY, HERE], [HERE, NO_WAY], [NO_FAMILY, HERE]])
def test_an_address_to_which_there_is_no_way_is_left_out(port: int, addresses: list[Any]) -> None:
    """As IPv6's of a host that has both, from a controller that has IPv4 alone."""
    found = {"rounds": 0, "was_open": False, "source": ""}
    assert reach_module.reach(addresses, UDP_KNOCK, wanted(port), found) == ("127.0.0.1", "")
    assert (found["was_open"], found["source"]) == (True, "127.0.0.1")


def test_without_a_way_to_any_address_it_gives_up_at_once(port: int) -> None:
    found = {"rounds": 0, "was_open": False, "source": ""}
    with pytest.raises(OSError, match=r"denied|unreachable"):
        reach_module.reach([NO_WAY], UDP_KNOCK, wanted(port, timeout=60), found)
