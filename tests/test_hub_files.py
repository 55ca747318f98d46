"""A sealed folder copied over an earlier version: all of the one or all of the other."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_durability import killed_at

from pulse_hf.artifacts import DiskFullError, finish_replacing
from pulse_hf.hub.files import check_folder, copy_sealed, seal_folder


def shop(folder: Path, number: int) -> Path:
    """A published folder; one file of it only this version has, in a folder of its own."""
    for name in ("pulse.json", "base/config.json", f"base/only-{number}.json", f"extra-{number}/more.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(number))
    (folder / "README.md").write_text(f"Shop {number}")
    seal_folder(folder, "recommender")
    return folder


def files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


@pytest.fixture
def shops(tmp_path: Path) -> list[Path]:
    return [shop(tmp_path / f"version-{number}", number) for number in (1, 2)]


def test_what_only_the_earlier_version_had_goes_and_what_is_somebodys_stays(shops: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "here"
    copy_sealed(shops[0], target)
    own = {"mine.txt": "mine", "base/mine.txt": "mine", "extra-1/mine.txt": "mine"}
    for name, text in own.items():
        (target / name).write_text(text)
    copy_sealed(shops[1], target)
    assert files(target) == files(shops[1]) | own
    check_folder(target)


def test_a_copy_killed_at_every_point_leaves_one_version_whole(shops: list[Path], tmp_path: Path) -> None:
    versions = [files(one) for one in shops]
    points = 0
    while True:
        points += 1
        target = tmp_path / str(points)
        copy_sealed(shops[0], target)
        code = killed_at(points, lambda target=target: copy_sealed(shops[1], target))
        finish_replacing(target)
        assert {name: text for name, text in files(target).items() if name[0] != "."} in versions
        check_folder(target)
        copy_sealed(shops[1], target)
        assert files(target) == versions[1]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert points > 15, "the calls were not counted"


def test_a_full_disk_is_told_and_leaves_the_earlier_version(
    shops: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "here"
    copy_sealed(shops[0], target)

    def full(source: Path, copied: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copied))

    with monkeypatch.context() as disk:
        for room in ("pulse_hf.hub.files.copyfile", "shutil.copyfile", "shutil.copy2"):
            disk.setattr(room, full, raising=False)
        with pytest.raises(DiskFullError, match="no room"):
            copy_sealed(shops[1], target)
    assert files(target) == files(shops[0])
