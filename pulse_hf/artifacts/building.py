"""How an artefact comes into being: under a lock, in a folder beside its own, its manifest last, then one rename.

A kill at any moment leaves the old artefact or the new one. What a stage keeps of unfinished work (entries whose names
begin with a dot) is no part of the artefact and goes when it is finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pulse_hf.artifacts.files import (
    ArtifactError,
    fsync,
    fsync_files,
    read_json,
    room_for,
    sha256_of_file,
    write_json,
)
from pulse_hf.artifacts.processes import process, tell_all, wait_for_all

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 3  # 3: users to train on and users to judge by are drawn apart
_BEGUN = ".fingerprint.json"
# What artefacts of this format that were made earlier do not tell; where it is absent nothing is compared.
_TOLD_LATER = ("model.files_sha256",)
_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "sentence-transformers", "pyarrow")


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides an artefact's content.

    Args:
        stage: The stage's word.
        settings: The stage's settings as plain JSON values.
        seed: The run's seed.
        parents: Name of each input artefact or file to its sha256.
        model: Identity of the base model: id, revision, weights sha256; empty if none.
        prompts: Name of each prompt template to its sha256; empty if none.
    """

    stage: str
    settings: Mapping[str, Any]
    seed: int
    parents: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)

    def flat(self) -> dict[str, str]:
        """One ``dotted.key -> JSON text`` entry per fact; two fingerprints are compared by these."""
        facts: dict[str, Any] = {"stage": self.stage, "seed": self.seed}
        for group in ("settings", "parents", "model", "prompts"):
            facts.update({f"{group}.{key}": value for key, value in getattr(self, group).items()})
        return {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}


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
    # A refused lock is told to the others, too.
    with room_for(folder), _telling() as begun, _locked(folder):
        _refuse_foreign(folder, force=force)
        _recover(folder)
        if (folder / MANIFEST).exists():
            differences = _stale(folder) or _differences(read_manifest(folder)["fingerprint"], fingerprint.flat())
            if not differences:
                begun(False)
                return False
            if not force:
                raise ArtifactError(_refusal(folder, differences))
        work = folder.with_name(folder.name + ".partial")
        _open_work(work, fingerprint, force=force)
        begun(True)
        started = time.perf_counter()
        counts = make(work)
        _finish(work, fingerprint, counts, seconds=time.perf_counter() - started)
        _recover(folder)
        wait_for_all()
    return True


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
        f"{folder} is there, but no finished artefact (no {MANIFEST}); expected an artefact or nothing. Move it "
        "elsewhere, use another run folder, or pass --force to put the artefact in its place."
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
        differences = _differences(known, asked)
        # Only what can be gone on with is worth a refusal; anything else half-made is made again without a word.
        if differences and known and not force and any(_kept(work)):
            raise ArtifactError(_refusal(work, differences))
        if differences or not _same_libraries(work, versions, force=force):
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
            f"{work} was begun with {named}; what is gone on with would not be what one version makes. Install the "
            "versions it was begun with, or pass --force to make it anew."
        )
    if changed:
        logger.warning("%s was begun with %s; going on with it", work, named)
    return True


def _kept(work: Path) -> Iterator[Path]:
    return (path for path in work.glob(".*/*") if path.parent.is_dir())


def _finish(work: Path, fingerprint: Fingerprint, counts: Mapping[str, Any], *, seconds: float) -> None:
    files = {name: sha256_of_file(work / name) for name in _files(work)}
    fsync_files(work, files)  # before the manifest that vouches for them
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    manifest = {
        "format_version": FORMAT_VERSION,
        "stage": fingerprint.stage,
        "fingerprint": fingerprint.flat(),
        "files": files,
        "sha256": content,
        "counts": dict(counts),
        "seconds": round(seconds, 3),
        "versions": package_versions(),
    }
    write_json(work / MANIFEST, manifest)


def _files(folder: Path) -> list[str]:
    """The artefact's files: all but the manifest and what is kept of unfinished work."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        name.as_posix()
        for name in names
        if name.as_posix() != MANIFEST and not any(part.startswith(".") for part in name.parts)
    ]


def _differences(known: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    keys = sorted(known.keys() | asked.keys())
    return [
        f"{key}: was {known.get(key, 'absent')}, asked {asked.get(key, 'absent')}"
        for key in keys
        if known.get(key) != asked.get(key) and (key in known or key not in _TOLD_LATER)
    ]


def _stale(folder: Path) -> list[str]:
    """Why a finished artefact cannot be gone on from, whatever made it."""
    found = read_json(folder / MANIFEST).get("format_version")
    return [] if found == FORMAT_VERSION else [f"format_version: was {found}, this version writes {FORMAT_VERSION}"]


def _refusal(folder: Path, differences: list[str]) -> str:
    lines = "\n  ".join(differences)
    return (
        f"{folder} was made from something else:\n  {lines}\nUse another run folder, or pass --force to make it anew."
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artefact.

    Raises:
        ArtifactError: There is none, or it is not ours.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(f"{folder} is not a finished artefact (no {MANIFEST}). Run its stage first.")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version {manifest.get('format_version')!r}, expected {FORMAT_VERSION}: another "
            "version of this package made it. Make it anew."
        )
    return manifest


def content_sha256(folder: Path) -> str:
    """The sha256 that stands for an artefact's whole content; what its children record as parent."""
    return str(read_manifest(folder)["sha256"])


def parent_sha256(folder: Path) -> str:
    """The same of an artefact that a stage is about to read, whose files are first compared with its manifest.

    Raises:
        ArtifactError: It is not finished, or was damaged since.
    """
    verify(folder)
    return content_sha256(folder)


def parents_of(folder: Path) -> dict[str, str]:
    """Name of each input of a finished artefact to the sha256 it had."""
    start = "parents."
    facts = read_manifest(folder)["fingerprint"]
    return {key[len(start) :]: json.loads(value) for key, value in facts.items() if key.startswith(start)}


def settings_of(fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """The settings in a manifest's fingerprint.

    Example:
        >>> settings_of({"settings.dim": "64", "seed": "7"})
        {'dim': 64}
    """
    start = "settings."
    return {key[len(start) :]: json.loads(value) for key, value in fingerprint.items() if key.startswith(start)}


def verify(folder: Path) -> None:
    """Compare every file of an artefact with its manifest.

    Raises:
        ArtifactError: A file is missing, extra or changed; all of them are named.
    """
    expected = read_manifest(folder)["files"]
    found = {name: sha256_of_file(folder / name) for name in _files(folder)}
    wrong = [f"{name}: missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name}: not in the manifest" for name in found.keys() - expected.keys()]
    wrong += [f"{name}: sha256 differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    if wrong:
        named = "\n  ".join(sorted(wrong))
        raise ArtifactError(f"{folder} is damaged:\n  {named}\nCopy it again, or remove it and run its stage anew.")


def package_versions() -> dict[str, str]:
    """Versions of the libraries that decide results, for manifests and reports."""
    versions = {}
    for name in ("pulse-hf", *_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
