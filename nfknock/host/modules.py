"""What this kernel can do, found out without asking it to do anything: to ask netfilter is to load its modules."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Literal

State = Literal["there", "loadable", "absent"]


def state(module: str) -> State | None:
    """Return whether a module is there (loaded, or built in), could be loaded, or is absent; None: nothing tells."""
    if module in _loaded() or module in _listed("modules.builtin") or Path("/sys/module", module).exists():
        return "there"
    if module in _listed("modules.dep"):
        return "loadable"
    return "absent" if _listed("modules.dep") else None


def is_there(module: str) -> bool | None:
    """Whether a module is loaded or built in; None where nothing tells, in kernels without modules, above all."""
    found = state(module)
    return None if found is None else found == "there"


def _loaded() -> frozenset[str]:
    try:
        return frozenset(line.split(None, 1)[0] for line in Path("/proc/modules").read_text().splitlines())
    except OSError:
        return frozenset()


@cache
def _listed(name: str) -> frozenset[str]:
    """Return the modules that an index in /lib/modules names, none if there is no such index."""
    try:
        lines = Path("/lib/modules", platform.release(), name).read_text().splitlines()
    except OSError:
        return frozenset()
    paths = (line.partition(":")[0] for line in lines)
    return frozenset(Path(path).name.partition(".")[0].replace("-", "_") for path in paths)
