"""How an artefact comes into being: under a lock, in a folder beside its own, its manifest last, then one rename.

A kill at any moment leaves the old artefact or the new one. What a stage keeps of unfinished work (entries whose names
begin with a dot) is no part of the artefact and goes when it is finished.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pulse_hf.artifacts.files import ArtifactError, fsync, read_json, room_for, write_json
from pulse_hf.artifacts.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Fingerprint,
    differences,
    made_otherwise,
    package_versions,
    write_manifest,
)
from pulse_hf.artifacts.processes import process, tell_all, wait_for_all

logger = logging.getLogger(__name__)

_BEGUN = ".fingerprint.json"


def models_of(run: Path, first: str) -> dict[str, str]:
    """Which revision of each model the artefacts of a run were made with, finished or not.

    Args:
        run: The run folder.
        first: Name of the artefact that is asked first; others tell of models that it does not.

    Returns:
        Name of each model to its revision: a commit of the Hub, or where else it came from.
    """
    told: dict[str, str] = {}
    for path in sorted((*run.glob(f"*/{MANIFEST}"), *run.glob(f"*.partial/{_BEGUN}"))):
        facts = read_json(path)
        facts = facts if path.name == _BEGUN else facts.get("fingerprint", {})
        name, revision = (json.loads(facts.get(f"model.{key}", '""')) for key in ("id", "revision"))
        if name and (path.parent.name.removesuffix(".partial") == first or name not in told):
            told[name] = revision
    return told


def build(
    folder: Path,
    fingerprint: Fingerprint,
    make: Callable[[Path], Mapping[str, Any]],
    *,
    force: bool = False,
    together: bool = False,
) -> bool:
    """Bring one artefact into being, unless it is there already.

    ``make(work)`` writes the artefact's files into the folder ``work`` and returns what the manifest
    should record beside the fingerprint (row counts, measured figures, input hashes). ``work`` keeps
    its content when a run is interrupted, so a ``make`` that goes on from :class:`~pulse_hf.artifacts.Shards`
    or :class:`~pulse_hf.artifacts.Checkpoints` resumes.

    Args:
        folder: Where the finished artefact lies.
        fingerprint: What decides its content.
        make: Writes the files, returns the manifest's ``counts``.
        force: Build anew although the artefact exists with another fingerprint.
        together: Of several launched processes all run ``make`` on the same ``work`` (and only process 0's counts
            count); otherwise process 0 makes it and the others wait.

    Returns:
        True if the artefact was made now, False if it was there already.

    Raises:
        ArtifactError: An artefact or a half-made one with another fingerprint lies there, or one half-made with other
            major versions of the libraries, or files that no stage made, or another process is at it.
        DiskFullError: There is no room; what lay there still does.
    """
    if process() > 0:
        return _helped(folder, make, together=together)
    with room_for(folder), _telling() as begun:
        if _is_there(folder, fingerprint):  # no lock is taken: the run may lie on a read-only disk
            begun(False)
            return False
        with _locked(folder):  # a refused lock is told to the others, too
            return _made(folder, fingerprint, make, begun, force=force)


def _made(
    folder: Path,
    fingerprint: Fingerprint,
    make: Callable[[Path], Mapping[str, Any]],
    begun: Callable[[bool], None],
    *,
    force: bool,
) -> bool:
    _refuse_foreign(folder, force=force)
    _recover(folder)
    if (folder / MANIFEST).exists():
        otherwise = made_otherwise(folder, fingerprint)
        if not otherwise:
            begun(False)
            return False
        if not force:
            raise ArtifactError(_refusal(folder, otherwise))
    work = folder.with_name(folder.name + ".partial")
    _open_work(work, fingerprint, force=force)
    begun(True)
    started = time.perf_counter()
    counts = make(work)
    write_manifest(work, fingerprint, counts, seconds=time.perf_counter() - started)
    _recover(folder)
    wait_for_all()
    return True


def _is_there(folder: Path, fingerprint: Fingerprint) -> bool:
    """Whether the artefact is finished and what is asked for, and nothing of a swap that was cut short lies about."""
    swapping = folder.with_name(f"{folder.name}.partial") / MANIFEST, folder.with_name(f".{folder.name}.old")
    there = (folder / MANIFEST).exists() and not any(path.exists() for path in (*swapping, *folder.rglob(".*")))
    return there and not made_otherwise(folder, fingerprint)


def _helped(folder: Path, make: Callable[[Path], Mapping[str, Any]], *, together: bool) -> bool:
    """The part of a process other than the first."""
    outcome = tell_all(None)
    if outcome == "refused":
        raise ArtifactError(f"{folder}: process 0 could not begin; its own message says why.")
    if outcome == "made":
        if together:
            with room_for(folder):
                make(folder.with_name(folder.name + ".partial"))
        wait_for_all()
    return bool(outcome == "made")


@contextmanager
def _telling() -> Iterator[Callable[[bool], None]]:
    """A function that tells the other processes whether there is work; they are told, too, if it is never called."""
    told = []

    def begun(work: bool) -> None:
        told.append(tell_all("made" if work else "skipped"))

    try:
        yield begun
    finally:
        if not told:
            tell_all("refused")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock of a dead process is free, whatever killed it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = (folder.with_name(f".{folder.name}.{ending}") for ending in ("lock", "owner"))
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        number = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
        raise ArtifactError(
            f"{folder} is being made by process {number}. Wait for it, stop it, or take another run folder."
        ) from error
    try:
        owner.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        held.release()


def _refuse_foreign(folder: Path, *, force: bool) -> None:
    """What no stage made is not moved away: somebody keeps files of their own under a stage's name."""
    made = (folder / MANIFEST).exists() or not folder.exists()
    if made or force or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise ArtifactError(
        f"{folder} exists, but is not a finished artefact (no {MANIFEST}). Move it elsewhere, "
        "use another run folder, or pass --force to put the artefact in its place."
    )


def _recover(folder: Path) -> None:
    """Finish or undo whatever a swap of folders was doing; every step may be the last before a kill."""
    work = folder.with_name(f"{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")  # hidden: a copy that people make has no such name
    if (work / MANIFEST).exists():  # complete: its manifest was written last
        if folder.exists():
            _take_away(old)
            os.replace(folder, old)
        os.replace(work, folder)
        fsync(folder.parent)
    elif old.exists() and not folder.exists():
        os.replace(old, folder)
        fsync(folder.parent)
    _take_away(old)
    if (folder / MANIFEST).exists():
        for path in [path for path in folder.rglob(".*") if path.exists()]:
            _take_away(path)


def _take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_work(work: Path, fingerprint: Fingerprint, *, force: bool) -> None:
    begun, asked = work / _BEGUN, {**fingerprint.flat(), "format_version": str(FORMAT_VERSION)}
    if work.exists():
        known = read_json(begun) if begun.exists() else {}
        versions = known.pop("versions", {})
        otherwise = differences(known, asked)
        # Only what can be gone on with is worth a refusal; anything else half-made is made again without a word.
        if otherwise and known and not force and any(_kept(work)):
            raise ArtifactError(_refusal(work, otherwise))
        if otherwise or not _same_libraries(work, versions, force=force):
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(begun, {**asked, "versions": package_versions()})


def _same_libraries(work: Path, begun_with: Mapping[str, str], *, force: bool) -> bool:
    """Whether half-made work can be gone on with by the libraries as they are now; minor differences are told.

    Raises:
        ArtifactError: A major version is another one, and the work is not to be thrown away.
    """
    known, now = begun_with if any(_kept(work)) else {}, package_versions()
    changed = [name for name in sorted(known) if known[name] != now.get(name)]
    named = ", ".join(f"{name} {known[name]} (now {now.get(name, 'absent')})" for name in changed)
    if any(known[name].split(".")[0] != now.get(name, "").split(".")[0] for name in changed):
        if force:
            return False
        raise ArtifactError(
            f"{work} was started with {named}; going on would mix what two versions make. Install the versions "
            "it was started with, or pass --force to make it anew."
        )
    if changed:
        logger.warning("%s was started with %s; going on with it", work, named)
    return True


def _kept(work: Path) -> Iterator[Path]:
    return (path for path in work.glob(".*/*") if path.parent.is_dir())


def _refusal(folder: Path, otherwise: list[str]) -> str:
    lines = "\n  ".join(otherwise)
    remedy = "Use another run folder, or pass --force to make it anew."
    return f"{folder} was made from other settings or inputs:\n  {lines}\n{remedy}"
