"""What a finished artefact says of itself: what made it, the sha256 of its files, what it counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pulse_hf.artifacts.files import ArtifactError, fsync_files, read_json, sha256_of_file, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 3  # 3: users to train on and users to judge by are drawn apart
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


def differences(known: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """In which facts two flat fingerprints differ, a sentence each."""
    keys = sorted(known.keys() | asked.keys())
    return [
        f"{key}: was {known.get(key, 'absent')}, asked {asked.get(key, 'absent')}"
        for key in keys
        if known.get(key) != asked.get(key) and (key in known or key not in _TOLD_LATER)
    ]


def made_otherwise(folder: Path, fingerprint: Fingerprint) -> list[str]:
    """In what a finished artefact differs from what is asked for; of another format, that alone."""
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        return [f"format_version: was {found}, this version writes {FORMAT_VERSION}"]
    return differences(manifest["fingerprint"], fingerprint.flat())


def write_manifest(work: Path, fingerprint: Fingerprint, counts: Mapping[str, Any], *, seconds: float) -> None:
    """Seal an artefact: its files are on the disk before the manifest that vouches for them is."""
    files = {name: sha256_of_file(work / name) for name in _files(work)}
    fsync_files(work, files)
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artefact.

    Raises:
        ArtifactError: The folder has no manifest, or one of another format.
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


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that made a finished artefact."""
    return settings_in(read_manifest(folder)["fingerprint"])


def seed_of(folder: Path) -> int:
    """The seed that made a finished artefact."""
    return int(json.loads(read_manifest(folder)["fingerprint"]["seed"]))


def parents_of(folder: Path) -> dict[str, str]:
    """Name of each input of a finished artefact to the sha256 it had."""
    return _group("parents", read_manifest(folder)["fingerprint"])


def settings_in(fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """The settings in a flat fingerprint.

    Example:
        >>> settings_in({"settings.dim": "64", "seed": "7"})
        {'dim': 64}
    """
    return _group("settings", fingerprint)


def _group(name: str, fingerprint: Mapping[str, str]) -> dict[str, Any]:
    start = f"{name}."
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
