"""How many elements the sets of holes may have: `set_size`, also where a set was made with another one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from nfknock.backends.nftables import elements, library, script, standing
from nfknock.backends.nftables.elements import Name
from nfknock.errors import BackendError


def misfits(size: int) -> dict[Name, int]:
    """Return the sets that are to have that size, each with the one that it has; not those that hold more already."""
    return {
        name: has
        for name, has in elements.sizes().items()
        # 0 is one that somebody made, without a bound.
        if has != size and (0 < has < size or sum(1 for _ in elements.read(name)) <= size)
    }


def resize(size: int, now: float) -> Iterator[str]:
    """Give sets that size, with what they hold. One that cannot have it stays as it is; yields why."""
    if due := misfits(size):
        _ask_for(due, size)
    for name in misfits(size) if due else ():
        try:
            # What is shut or opened just now by another process would not be seen: a matter of milliseconds.
            parts = list(elements.read(name, now))
            library.run("\n".join(script.remake_set(standing.read(), name, size, parts, now)))
        except BackendError as exc:
            yield f"the set {name} keeps its size, whatever `set_size` says: {exc}"


def _ask_for(names: Iterable[Name], size: int) -> None:
    """Ask the kernel to give sets another size; before Linux 6.5 it passes over that."""
    with contextlib.suppress(BackendError):
        library.run("\n".join(script.add_set(name, size) for name in names))
