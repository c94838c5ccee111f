"""Lays out the tree of the Debian package and packs it; `script/deb` calls this."""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "script/debian"
SYSTEMD = ROOT / "nfknock/systemd"
# What the package brings itself, where it gets in nobody's way; rich without what it needs for Markdown and programs.
BUNDLED = ("click", "msgspec", "NetfilterQueue", "pyroute2", "python-iptables", "rich")
# What is compiled for one Python alone, and which Debian has for its own. A package for that release can be built on
# any other.
OF_THE_RELEASE = {"debian13": {"msgspec": "python3-msgspec (>= 0.19)", "NetfilterQueue": "python3-netfilterqueue"}}
# Debian 12 wants units there and nowhere else; later releases want nothing in /lib, which is a link.
UNITS = {"debian12": Path("lib/systemd/system")}
PRIVATE = Path("usr/lib/nfknock")
DOC = Path("usr/share/doc/nfknock")
DATED = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)


def main() -> None:
    """Build the package and print where it is."""
    options = parse_options()
    for program in ("dpkg-deb", "patchelf", "strip"):
        if shutil.which(program) is None:
            sys.exit(f"script/deb: there is no {program}; install it with: apt-get install dpkg patchelf binutils")
    here = read_release()
    if options.release not in (here, *OF_THE_RELEASE):
        sys.exit(f"script/deb: the package for {options.release or here} has to be built there; this is {here}")
    version = f"{read_version()}-{options.revision}+{options.release.replace('debian', 'deb')}"
    taken = OF_THE_RELEASE.get(options.release, {})
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "nfknock")
        place_libraries(tree / PRIVATE, options.site_packages, [name for name in BUNDLED if name not in taken])
        place_program(tree)
        place_units(tree, UNITS.get(options.release, Path("usr/lib/systemd/system")))
        place_documents(tree, version)
        write_control(tree, version, list(taken.values()) or [f"python3 (<< {next_python()})"])
        set_modes(tree)
        options.output.mkdir(parents=True, exist_ok=True)
        print(pack(tree, options.output))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="script/deb")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--release", default=read_release())
    parser.add_argument("--revision", default="1")
    here = ROOT / f".venv/lib/python{sysconfig.get_python_version()}/site-packages"
    parser.add_argument("--site-packages", type=Path, default=here)
    return parser.parse_args()


def read_release() -> str:
    """Return which release this is: debian12, ubuntu24.04."""
    lines = Path("/etc/os-release").read_text().splitlines()
    fields = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    return fields["ID"] + fields["VERSION_ID"]


def next_python() -> str:
    """Return the version of Python that no longer loads what was compiled for this one."""
    return f"{sys.version_info.major}.{sys.version_info.minor + 1}~"


def read_version() -> str:
    """Return the project's version."""
    found = re.search(r'__version__ = "(.*)"', (ROOT / "nfknock/__init__.py").read_text())
    assert found is not None  # pyproject.toml takes it from there, too
    return found[1]


def place_libraries(private: Path, site_packages: Path, names: list[str]) -> None:
    """Copy the libraries, as far as they are needed at run time."""
    if not site_packages.is_dir():
        sys.exit(f"script/deb: {site_packages} is not there: .venv is not of this release's own Python")
    found = {normal(each.name): each for each in distributions(path=[str(site_packages)])}
    for name in names:
        if normal(name) not in found:
            sys.exit(f"script/deb: {name} is not in {site_packages}")
        copy_distribution(found[normal(name)], private)
    for wrapper in private.glob("libxtwrapper.*.so"):
        # It has nothing to do with Python, but its name.
        wrapper.rename(private / "libxtwrapper.so")
    for library in sorted(private.rglob("*.so")):
        # Wheels may look for libraries where they were built.
        subprocess.run(["patchelf", "--remove-rpath", library], check=True)
        subprocess.run(["strip", "--strip-unneeded", "--remove-section=.comment", library], check=True)


def normal(name: str) -> str:
    """Return a distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_distribution(distribution: Distribution, private: Path) -> None:
    """Copy a distribution's modules; programs, metadata, sources and byte code stay behind."""
    for file in distribution.files or ():
        parts = file.parts
        if parts[0] == ".." or parts[0].endswith(".dist-info") or "__pycache__" in parts or "tests" in parts:
            continue
        if file.suffix in (".py", ".so"):
            copy(Path(str(file.locate())), private / file)
            without_interpreter(private / file)


def without_interpreter(module: Path) -> None:
    """Take out the first line by which a module could be run as a program: nobody can, here."""
    content = module.read_bytes()
    if content.startswith(b"#!"):
        module.write_bytes(content.partition(b"\n")[2])


def place_program(tree: Path) -> None:
    """Copy nfknock itself, the rules, and the command that starts it."""
    for path in sorted([*(ROOT / "nfknock").rglob("*.py"), *(ROOT / "rules").glob("*.*")]):
        if path.suffix in (".py", ".toml"):
            place = Path("nfknock", path.relative_to(ROOT)) if path.parent.name == "rules" else path.relative_to(ROOT)
            copy(path, tree / PRIVATE / place)
    copy(HERE / "nfknock", tree / "usr/bin/nfknock")


def place_units(tree: Path, units: Path) -> None:
    """Copy what systemd and logrotate read. The configuration's directory is there, and empty."""
    for unit in ("nfknock.service", "nfknock-apply.service"):
        copy(SYSTEMD / unit, tree / units / unit)
    for kind in ("sysusers", "tmpfiles", "modules-load"):
        copy(SYSTEMD / f"{kind}.conf", tree / f"usr/lib/{kind}.d/nfknock.conf")
    copy(SYSTEMD / "logrotate", tree / "etc/logrotate.d/nfknock")
    (tree / "etc/nfknock").mkdir()


def place_documents(tree: Path, version: str) -> None:
    """Copy and write what there is to read."""
    squeeze(tree / "usr/share/man/man8/nfknock.8.gz", (ROOT / "docs/man/nfknock.8").read_text())
    squeeze(tree / DOC / "changelog.gz", (ROOT / "CHANGELOG.md").read_text())
    entry = (HERE / "changelog").read_text().format(version=version, date=DATED.strftime("%a, %d %b %Y %H:%M:%S +0000"))
    squeeze(tree / DOC / "changelog.Debian.gz", entry)
    copy(HERE / "copyright", tree / DOC / "copyright")
    copy(HERE / "README.Debian", tree / DOC / "README.Debian")
    for document in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs").glob("*.json")),
    ]:
        copy(document, tree / DOC / document.name)
    for example in (ROOT / "rules/examples.toml", SYSTEMD / "more-rights.conf"):
        copy(example, tree / DOC / "examples" / example.name)


def write_control(tree: Path, version: str, also_depends: list[str]) -> None:
    """Write what dpkg reads."""
    control = tree / "DEBIAN"
    control.mkdir()
    size = sum(-(-path.stat().st_size // 1024) for path in tree.rglob("*") if path.is_file())
    text = (HERE / "control").read_text()
    fields = {
        "version": version,
        "architecture": output_of("dpkg", "--print-architecture"),
        "also_depends": ", ".join(also_depends),
        "libc": output_of("dpkg-query", "-W", "-f", "${Version}", "libc6").split("-")[0],
        "size": str(size),
    }
    (control / "control").write_text(text.format_map(fields))
    for script in ("postinst", "prerm", "postrm"):
        copy(HERE / script, control / script)
    conffiles = sorted(f"/{path.relative_to(tree)}\n" for path in (tree / "etc").rglob("*") if path.is_file())
    (control / "conffiles").write_text("".join(conffiles))
    sums = [
        f"{output_of('md5sum', str(path)).split()[0]}  {path.relative_to(tree)}\n"
        for path in sorted(tree.rglob("*"))
        if path.is_file() and path.relative_to(tree).parts[0] not in ("DEBIAN", "etc")
    ]
    (control / "md5sums").write_text("".join(sums))


def set_modes(tree: Path) -> None:
    """Give every file the mode it is to have, whatever it has in the checkout, and the package's date."""
    scripts = {"usr/bin/nfknock", *(f"DEBIAN/{name}" for name in ("postinst", "prerm", "postrm"))}
    for path in [tree, *sorted(tree.rglob("*"), reverse=True)]:
        is_program = path.is_dir() or str(path.relative_to(tree)) in scripts
        path.chmod(0o755 if is_program else 0o644)
        os.utime(path, (DATED.timestamp(), DATED.timestamp()))


def pack(tree: Path, output: Path) -> Path:
    """Make the file. dpkg-deb sorts names and takes SOURCE_DATE_EPOCH for what is younger."""
    fields = (tree / "DEBIAN/control").read_text()
    name = "_".join(re.findall(r"^(?:Package|Version|Architecture): (.*)$", fields, re.MULTILINE))
    made = output / f"{name}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build", str(tree), str(made)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


def copy(source: Path, target: Path) -> None:
    """Copy a file's content; the directory is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def squeeze(target: Path, text: str) -> None:
    """Write a text, packed as Debian wants it: with neither name nor date in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def output_of(*command: str) -> str:
    """Return what a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
