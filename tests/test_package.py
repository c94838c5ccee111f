"""What is installed is what stands in the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_package_and_the_rules(tmp_path: Path) -> None:
    """setup.cfg lists packages by name, because one of them stands outside: none may be forgotten."""
    tree = tmp_path / "tree"
    for name in ("nfknock", "rules"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(tree)], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("nfknock-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "nfknock").rglob("*.py")}
    rules = {f"nfknock/rules/{path.name}" for path in (ROOT / "rules").iterdir() if path.suffix in (".py", ".toml")}
    units = {f"nfknock/systemd/{path.name}" for path in (ROOT / "nfknock/systemd").iterdir()}
    assert held == own | rules | units | {"nfknock/py.typed"}
