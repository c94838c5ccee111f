"""Wheels of what is installed here, so that a host can be given them where there is no network."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.bastion.machine import ROOT


def make_wheels(directory: Path) -> None:
    """Make those of nfknock and of all that its server needs."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    for name in needed("nfknock", "server") - {"nfknock"}:
        pack(distribution(name), directory)


def needed(name: str, extra: str) -> set[str]:
    """Return the names of all distributions that one needs, and its own."""
    found = {name}
    for text in distribution(name).requires or ():
        each = Requirement(text)
        if (each.marker is None or each.marker.evaluate({"extra": extra})) and each.name not in found:
            found |= needed(each.name, "")
    return found


def pack(made: Distribution, directory: Path) -> None:
    """Put a distribution back into the archive that it came from."""
    about = made.read_text("WHEEL")
    assert about is not None
    tag = re.findall(r"^Tag: (\S+)$", about, re.MULTILINE)[-1]
    name = re.sub(r"[-_.]+", "_", made.name)
    with zipfile.ZipFile(directory / f"{name}-{made.version}-{tag}.whl", "w") as wheel:
        for file in made.files or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                wheel.write(str(file.locate()), str(file))
