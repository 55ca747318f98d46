"""How entries of a folder are replaced: all of them or none, whatever stops it.

A folder that people save into may be a mount or a link, and the new content may have been loaded from it. So the new
entries are written into ``.saving/new`` inside; once they are whole a plan is written, and from then on the old ones
are moved away and the new ones in. Whoever opens the folder after a kill carries out the plan that lies there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pulse_hf.artifacts.files import ArtifactError, fsync, fsync_files, read_json, room_for, write_json
from pulse_hf.artifacts.unfinished import whole_batch

_WORK, _PLAN, _LOCK = ".saving", "plan.json", ".lock"
_PATIENCE_S = 10.0

__all__ = ["finish_replacing", "replacing"]


@contextmanager
def replacing(folder: Path, earlier: Callable[[], Iterable[str]], *, last: str) -> Iterator[Path]:
    """A folder to write new entries into, which take the earlier ones' places when the block ends well.

    Args:
        folder: Whose entries; made if it is not there.
        earlier: Gives the names of the entries that go, whether new ones of that name come or not; asked when no other
            process saves there any more.
        last: The entry by which a reader tells that the others are whole.

    Raises:
        ArtifactError: Another process saves into the folder.
        DiskFullError: There is no room; the folder is as it was.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "old.txt").write_text("1")
        >>> with replacing(folder, lambda: ["old.txt"], last="seal") as new:
        ...     _ = (new / "new.txt").write_text("2"), (new / "seal").write_text("3")
        >>> sorted(path.name for path in folder.iterdir())
        ['new.txt', 'seal']
    """
    work = folder / _WORK
    with _alone(folder):
        _clear(work)
        going = sorted(set(earlier()))
        new = work / "new"
        new.mkdir()
        (work / "old").mkdir()
        try:
            with room_for(folder / last):
                yield new
                fsync_files(new)
                names = sorted((path.name for path in new.iterdir()), key=lambda name: (name == last, name))
                with whole_batch():
                    write_json(work / _PLAN, {"earlier": going, "new": names})
                    _carry_out(folder)
        finally:
            if not (work / _PLAN).exists():  # nothing was changed, or everything
                _leave(work)


def finish_replacing(folder: Path) -> None:
    """Carry out what a killed process had planned; nothing else is touched.

    Raises:
        ArtifactError: The plan was not written by this package, or another process saves into the folder.
    """
    if (folder / _WORK / _PLAN).exists():
        with _alone(folder):
            if (folder / _WORK / _PLAN).exists():
                _carry_out(folder)
            else:  # another process has done it meanwhile
                _leave(folder / _WORK)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock of a dead one is free."""
    held, end = FileLock(folder / _WORK / _LOCK), time.monotonic() + _PATIENCE_S
    while not _holds(held, end - time.monotonic()):
        if time.monotonic() > end:
            raise ArtifactError(f"{folder} is being saved by another process; wait for it, or save elsewhere")
    try:
        yield
    finally:
        held.release()


def _holds(lock: FileLock, patience: float) -> bool:
    """Whether the lock was got, and is not one that its last holder took away meanwhile, alone or with its folder."""
    path = Path(lock.lock_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=max(0.0, patience))
    except (Timeout, FileNotFoundError):
        return False
    if path.exists():
        return True
    lock.release()
    return False


def _leave(work: Path) -> None:
    """Take the work folder away, the lock last: whoever waits for it goes on from there."""
    _clear(work)
    (work / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # the next one may have come already
        work.rmdir()


def _clear(work: Path) -> None:
    """Take away what a process left that was killed while it wrote."""
    for name in ("new", "old"):
        if (work / name).exists():
            shutil.rmtree(work / name)


def _planned(path: Path) -> tuple[list[str], list[str]]:
    """The names that go and those that come; a folder may be somebody else's, whose plan moves nothing outside it.

    Raises:
        ArtifactError: It is no plan of ours.
    """
    plan = read_json(path)
    told: dict[str, Any] = plan if isinstance(plan, dict) else {}
    earlier, coming = told.get("earlier"), told.get("new")
    if not (_are_entries(earlier) and _are_entries(coming)):
        raise ArtifactError(f"{path} names other than entries of its folder; remove {path.parent} to go on without it")
    return list(earlier or ()), list(coming or ())


def _are_entries(names: Any) -> bool:
    return isinstance(names, list) and all(
        isinstance(one, str) and one not in ("", ".", "..") and "/" not in one for one in names
    )


def _carry_out(folder: Path) -> None:
    """Move the old entries out and the new ones in; every step may have been done before."""
    work = folder / _WORK
    new, old = work / "new", work / "old"
    earlier, coming = _planned(work / _PLAN)
    for name in earlier:
        moved_in = name in coming and not (new / name).exists()
        if not moved_in and (folder / name).exists():
            os.replace(folder / name, old / name)
    for name in coming:
        if (new / name).exists():
            os.replace(new / name, folder / name)
    fsync(folder)
    (work / _PLAN).unlink()
    _leave(work)
