"""What leads to hosts behind this one: whether the kernel forwards at all, and whether a plan guards it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from nfknock.core.model import Hole, IPAddress
from nfknock.core.plan import Plan

_SETTINGS = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_EACH = {4: "net/ipv4/conf", 6: "net/ipv6/conf"}


def idle(targets: Iterable[IPAddress]) -> Iterator[str]:
    """Yield a warning for each family of these hosts behind that the kernel does not forward, here and now."""
    for version in sorted({target.version for target in targets}):
        if not _is_on(version):
            setting = _SETTINGS[version]
            yield f"IPv{version} forwarding is off, so nothing is forwarded; turn it on with `sysctl {setting}=1`"


def guarded(holes: Iterable[Hole], plan: Plan) -> Iterator[Hole]:
    """Yield as much of each hole as leads to this host, or to what the plan guards."""
    ports = set(plan.forwarded)
    for hole in holes:
        opens = tuple(each for each in hole.opens if each.to is None or each in ports)
        if opens:
            yield replace(hole, opens=opens)


def _is_on(version: int) -> bool:
    """Whether any interface forwards; what new ones will do says nothing."""
    files = Path("/proc/sys", _EACH[version]).glob("*/forwarding")
    return any(_read(file) not in ("", "0") for file in files if file.parent.name != "default")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""  # an interface that went meanwhile
