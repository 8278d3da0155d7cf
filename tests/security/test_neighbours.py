"""Other users of the same machine: what they put where everybody may write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainables.worker import shelf
from trainables.worker.private import private_folder


def _open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _link(path: Path) -> None:
    home = path.with_name("home")
    home.mkdir(mode=0o700)
    path.symlink_to(home)


def _file(path: Path) -> None:
    path.write_text("")


def _of_another_user(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make folders of another user")
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("came_first", [_open, _link, _file, _of_another_user])
def test_who_comes_first_gets_nothing(came_first: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "routefront-1"
    came_first(path)
    got = private_folder(path)
    assert got != path and got.parent == tmp_path and got.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.glob("home/*"))


def test_ones_own_folder_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert private_folder(tmp_path / "mine") == private_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setattr(shelf.tempfile, "tempdir", str(tmp_path))
    mine = shelf.own_folder()
    assert mine.parent.parent == tmp_path and mine == shelf.own_folder()
    mine.parent.chmod(0o755)  # readable for everybody: made by an older version, or on purpose
    assert shelf.own_folder().parent != mine.parent
