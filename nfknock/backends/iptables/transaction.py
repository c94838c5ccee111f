"""One change of the filter tables: all families or none, under the xtables lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from nfknock.backends.iptables.layout import ENTRANCES, INPUT, is_own
from nfknock.backends.xtables.lock import xtables_lock
from nfknock.backends.xtables.table import FilterTable, Snapshot, TableChangedError
from nfknock.core.model import Family
from nfknock.errors import BackendError

Edit = Callable[[FilterTable], bool]

# Tools that do not take the lock can change a table between reading and writing it.
_TRIES = 5


Writing = Callable[[], AbstractContextManager[object]]


def change(tables: Sequence[FilterTable], edit: Edit, writing: Writing = nullcontext) -> bool:
    """Apply `edit` to every table and write those for which it returned True; say whether anything was written.

    May call `edit` several times, each time on a freshly read table and in a context of `writing`, which takes back
    what an edit wrote beside the tables. Raises BackendError, and then nothing changed.
    """
    for _ in range(_TRIES - 1):
        try:
            return _once(tables, edit, writing)
        except TableChangedError:
            continue
    return _once(tables, edit, writing)


def _once(tables: Sequence[FilterTable], edit: Edit, writing: Writing) -> bool:
    with xtables_lock(), writing():
        for table in tables:
            table.refresh()
        before = {table.family: table.snapshot(is_own, INPUT, ENTRANCES) for table in tables}
        edited = [table for table in tables if edit(table)]
        written: list[FilterTable] = []
        with _rolled_back(written, before):
            for table in edited:
                intended = _heads(table)
                table.commit()
                written.append(table)
                if _heads(table) != intended:
                    raise BackendError(f"the {table.family} filter table does not hold what was written into it")
    return bool(edited)


@contextmanager
def _rolled_back(written: list[FilterTable], before: dict[Family, Snapshot]) -> Iterator[None]:
    """Put tables that were written back as they were if anything goes wrong."""
    try:
        yield
    except BaseException:
        for table in written:
            table.restore(before[table.family], is_own, INPUT, ENTRANCES)
            table.commit()
        raise


def _heads(table: FilterTable) -> dict[str, list[tuple[str, bytes]]]:
    """What is compared before and after: of our rules and our jumps, where they go and their heads.

    Not the host's own rules: a tool that takes no lock may have changed them in between, which is its business.
    """
    own = {
        chain: [(entry.jump, entry.head) for entry in table.entries(chain)] for chain in table.chains() if is_own(chain)
    }
    for target, chain in ENTRANCES.items():
        own[f"{chain} to {target}"] = [(entry.jump, entry.head) for _at, entry in table.jumps(chain, target)]
    return own
