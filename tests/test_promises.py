"""What the documents promise, tests show: every one that they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
DOCUMENTS = ["reliability.md", "security.md"]


def functions(path: Path) -> set[str]:
    return {each.name for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_test_that_is_named_is_there(name: str) -> None:
    named = _NAMED.findall((ROOT / "docs" / name).read_text())
    assert named
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (ROOT / path).is_file() or (test and test not in functions(ROOT / path))
    ]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_row_names_one(name: str) -> None:
    """Of the tables that have a column for it."""
    rows = []
    has_column = False
    for line in (ROOT / "docs" / name).read_text().splitlines():
        if not line.startswith("|"):
            has_column = False
        elif line.rstrip(" |").endswith("shown by"):
            has_column = True
        elif has_column and not line.startswith("|---"):
            rows.append(line)
    assert rows
    assert [row for row in rows if not _NAMED.search(row.rsplit("|", 2)[1])] == []
