"""What may be published, and how a published folder proves that it is whole.

Only data travels: safetensors, JSON, Parquet, text, pictures, chat templates and a model's own source files. A folder
is checked by name and by first bytes, so a pickle under another name stays at home. ``checksums.json`` names every
file with its size and sha256; cards (``README.md``) are left out of it, since people edit them on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import copyfile
from typing import Any

from pulse_hf.artifacts import ArtifactError, finish_replacing, read_json, replacing, sha256_of_file, write_json

CHECKSUMS = "checksums.json"
FORMAT_VERSION = 1
CARD = "README.md"
# In a folder but of no concern to its content.
EVAL_RESULTS = ".eval_results"  # the Hub's own name for a folder of figures
UNSEALED = (CARD, CHECKSUMS, ".gitattributes")
# Folders of a recommender whose mere presence says which weights are loaded.
_DECIDING = ("merged", "base")

_SUFFIXES = (".safetensors", ".json", ".jsonl", ".parquet", ".md", ".png", ".txt", ".jinja", ".yaml", ".yml")
_NAMES = ("requirements.txt", ".gitattributes")
_CODE = (".py", ".css", ".html")  # of models that load without the package, and of pages
_SAFE_PATH = re.compile(r"[A-Za-z0-9_+.@-]+(?:/[A-Za-z0-9_+.@-]+)*")
_MAX_FILES = 10_000
# First bytes of what no data file of ours begins with: zip (torch.save), pickle protocols 2 to 5, ELF, gzip, HDF5.
_FORBIDDEN_STARTS = (
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"\x7fELF",
    b"\x1f\x8b",
    b"\x89HDF",
)
_STARTS = {".parquet": (b"PAR1",), ".png": (b"\x89PNG",)}


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a published folder.

    Args:
        path: Relative, with forward slashes.
        size: In bytes.
        sha256: Of its bytes, hexadecimal.
    """

    path: str
    size: int
    sha256: str


def is_safe_path(path: str) -> bool:
    """Whether a path from outside stays inside its folder and is spelled plainly.

    Example:
        >>> [is_safe_path(one) for one in ("base/config.json", "../config.json", "/etc/passwd", "a//b", ".git/hooks")]
        [True, False, False, False, False]
    """
    parts = path.split("/")
    hidden = any(part.startswith(".") and part != EVAL_RESULTS for part in parts[:-1])
    return bool(_SAFE_PATH.fullmatch(path)) and not hidden and not {".", ".."} & set(parts)


def is_data(path: str) -> bool:
    """Whether a name is that of a file without code.

    Example:
        >>> [is_data(one) for one in ("model.safetensors", "requirements.txt", "modeling_x.py", "weights.bin")]
        [True, True, False, False]
    """
    return path.endswith(_SUFFIXES) or PurePosixPath(path).name in _NAMES


def list_files(folder: Path, *, code: bool = False) -> list[PublishedFile]:
    """The files of a folder, each checked that it may be published.

    Args:
        folder: What is to be published.
        code: Whether source files may be among them: of models that load without the package, the Space, the metric.

    Raises:
        ArtifactError: A file may not leave this machine; all such files are named.
    """
    found, wrong = [], []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if _left_out(name):
            continue
        problem = _problem(path, name, code=code)
        if problem:
            wrong.append(f"{name} ({problem})")
        else:
            found.append(PublishedFile(name, path.stat().st_size, sha256_of_file(path)))
    if wrong:
        raise ArtifactError(
            f"{folder}: not published: {', '.join(wrong)}. Only safetensors, JSON, Parquet, YAML, Markdown, PNG, "
            "chat templates and a model's own source files are; remove the others or convert them."
        )
    return found


def _left_out(name: str) -> bool:
    """Locks, caches and half-made files, which are no part of anything."""
    parts = PurePosixPath(name).parts
    hidden = parts[-1].startswith(".") and parts[-1] not in _NAMES
    return hidden or "__pycache__" in parts or parts[0] in (".cache", ".saving")


def _problem(path: Path, name: str, *, code: bool) -> str:
    if path.is_symlink():
        return "a link"
    if not is_safe_path(name):
        return "a name with unusual characters"
    if not (is_data(name) or (code and name.endswith(_CODE))):
        return "neither data nor a model's source file"
    with path.open("rb") as stream:
        start = stream.read(8)
    expected = _STARTS.get(path.suffix)
    if path.suffix == ".safetensors":  # begins with a length, which may look like anything
        wrong = not _begins_as_safetensors(path)
    else:
        wrong = start.startswith(_FORBIDDEN_STARTS) or bool(expected and not start.startswith(expected))
    return "its bytes are not what its name says" if wrong else ""


def _begins_as_safetensors(path: Path) -> bool:
    """The length of a JSON header that fits into the file, then its first bracket."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def seal_folder(folder: Path, kind: str, about: Mapping[str, Any] | None = None) -> None:
    """Write ``checksums.json`` over all files of a folder; the last thing written there.

    Args:
        folder: A complete folder.
        kind: What it is: ``"recommender"``, ``"rationales"``, ….
        about: Plain JSON facts that are kept beside the sums.
    """
    files = {
        one.path: {"size": one.size, "sha256": one.sha256}
        for one in list_files(folder, code=True)
        if one.path not in UNSEALED
    }
    record = {"format_version": FORMAT_VERSION, "kind": kind, "about": dict(about or {}), "files": files}
    write_json(folder / CHECKSUMS, record)


@dataclass(frozen=True)
class Seal:
    """What ``checksums.json`` says.

    Args:
        kind: What the folder is.
        about: Facts beside the sums.
        files: All files but the card.
    """

    kind: str
    about: Mapping[str, Any]
    files: tuple[PublishedFile, ...]

    @property
    def data(self) -> tuple[PublishedFile, ...]:
        """The files without code: all that is ever fetched and read."""
        return tuple(one for one in self.files if is_data(one.path))


def read_seal(folder: Path) -> Seal:
    """Read ``checksums.json``, trusting nothing in it.

    Raises:
        ArtifactError: There is no such file, it is of another version, or it names a file that this package
            never writes.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {CHECKSUMS}: it was not published by this package")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        found = record.get("format_version") if isinstance(record, dict) else type(record).__name__
        raise ArtifactError(f"{path}: format {found!r}, expected {FORMAT_VERSION}; install a pulse_hf that knows it")
    try:
        files = tuple(
            PublishedFile(str(name), int(facts["size"]), str(facts["sha256"]))
            for name, facts in record["files"].items()
        )
        seal = Seal(str(record["kind"]), dict(record["about"]), files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: {type(error).__name__} {error}; the file is damaged") from error
    wrong = [one.path for one in files if not is_safe_path(one.path) or one.path in UNSEALED or one.size < 0]
    wrong += [one.path for one in files if not (is_data(one.path) or one.path.endswith(_CODE))]
    if wrong or len(files) > _MAX_FILES:
        raise ArtifactError(f"{path} names files that are never published: {', '.join(map(repr, wrong[:5]))}")
    return seal


def damaged_files(folder: Path, files: Iterable[PublishedFile]) -> list[str]:
    """Which files are missing or differ from their checksum."""
    return [
        one.path
        for one in files
        if not (folder / one.path).is_file()
        or (folder / one.path).stat().st_size != one.size
        or sha256_of_file(folder / one.path) != one.sha256
    ]


def copy_sealed(folder: Path, target: Path) -> None:
    """Copy a sealed folder into one that may hold an earlier version; what only that one had is taken away.

    A kill leaves the earlier version or the new one (:func:`pulse_hf.artifacts.replacing`); one that falls between two
    moves is made good by the next call.

    Args:
        folder: A complete folder.
        target: Where to; files that no seal names stay.

    Raises:
        ArtifactError: The seal of the earlier version cannot be read, or another process copies there.
        DiskFullError: There is no room; the earlier version is as it was.
    """
    finish_replacing(target)
    named = {one.path for one in read_seal(folder).files} | set(UNSEALED)
    new = {name for name in named if (folder / name).is_file()}

    def sealed() -> set[str]:
        return {one.path for one in read_seal(target).files} if (target / CHECKSUMS).is_file() else set()

    def entries() -> set[str]:
        return {name.split("/")[0] for name in new | sealed()}

    with replacing(target, entries, last=CHECKSUMS) as made:
        # Whole entries are replaced, so what somebody keeps inside them comes along.
        for name in sorted(_within(target, entries()) - sealed() - new):
            _copy(target / name, made / name)
        for name in sorted(new):
            _copy(folder / name, made / name)


def _within(folder: Path, entries: Iterable[str]) -> set[str]:
    paths = (path for name in entries for path in (folder / name).rglob("*"))
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file()}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copyfile(source, target)


def check_folder(folder: Path) -> Seal:
    """Read a sealed folder's record and check every data file against it.

    Raises:
        ArtifactError: It is not sealed, files are missing or damaged, or there are weights that belong to another
            version; they are named.
    """
    seal = read_seal(folder)
    wrong = damaged_files(folder, seal.data)
    if wrong:
        raise ArtifactError(f"{folder}: missing or damaged: {', '.join(wrong)}. Fetch or save it again.")
    sealed = {one.path.split("/")[0] for one in seal.files}
    strange = [name for name in _DECIDING if (folder / name).exists() and name not in sealed]
    if strange:
        raise ArtifactError(
            f"{folder} has {' and '.join(strange)}/, which its {CHECKSUMS} does not name: of another version? Delete "
            "it, or fetch into a new folder."
        )
    return seal
