"""Root and a daemon of another user work in the same directories: what root makes there is the daemon's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nfknock import files


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user's."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 1, 1)
    return directory


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return (status.st_uid, status.st_gid)


@pytest.mark.root
def test_what_root_opens_there_is_theirs(theirs: Path) -> None:
    os.close(files.open_shared(theirs / "lock"))
    assert owner(theirs / "lock") == (1, 1)
    assert (theirs / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.root
def test_what_root_replaces_there_is_theirs_if_it_is_shared(theirs: Path) -> None:
    files.replace(theirs / "shared", b"1", is_shared=True)
    files.replace(theirs / "own", b"1")
    assert (owner(theirs / "shared"), owner(theirs / "own")) == ((1, 1), (0, 0))
    files.replace(theirs / "own", b"2", is_shared=True)
    assert owner(theirs / "own") == (0, 0)  # a file that is there keeps its owner


@pytest.mark.root
def test_no_link_of_theirs_leads_root_elsewhere(theirs: Path, tmp_path: Path) -> None:
    (theirs / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        files.open_shared(theirs / "lock")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root a group is let in")
def test_a_group_may_read_what_root_says_is_the_groups(tmp_path: Path) -> None:
    secret = tmp_path / "nfknock.toml"
    secret.touch(0o640)
    secret.chmod(0o640)
    assert files.exposed(secret)
    tmp_path.chmod(0o2750)
    assert not files.exposed(secret)
    secret.chmod(0o660)
    assert files.exposed(secret) == 0o020
    secret.chmod(0o644)
    assert files.exposed(secret) == 0o004
