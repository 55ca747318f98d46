"""The one I/O room: every artefact is written, checked, resumed and skipped here and nowhere else.

An artefact is a folder of rows (Parquet, safetensors, JSON) and a ``manifest.json`` that is written
last. A stage works in ``<folder>.partial`` and renames it when done, so a reader sees a complete
artefact or none. The manifest's *fingerprint* (settings, seed, parents, prompts, model identity) says
what made it: a finished stage with the same fingerprint is skipped, with another one it is refused by
name unless the caller forces it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "sentence-transformers", "pyarrow")


class ArtifactError(RuntimeError):
    """An artefact is missing, damaged, or was made from something else than what is asked for."""


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


def build(
    folder: Path,
    fingerprint: Fingerprint,
    make: Callable[[Path], Mapping[str, Any]],
    *,
    force: bool = False,
) -> bool:
    """Bring one artefact into being, unless it is there already.

    ``make(work)`` writes the artefact's files into the folder ``work`` and returns what the manifest
    should record beside the fingerprint (row counts, measured figures, input hashes). ``work`` keeps
    its content when a run is interrupted, so a ``make`` that appends through :class:`Shards` resumes.

    Args:
        folder: Where the finished artefact lies.
        fingerprint: What decides its content.
        make: Writes the files, returns the manifest's ``counts``.
        force: Build anew although the artefact exists with another fingerprint.

    Returns:
        True if the artefact was made now, False if it was there already.

    Raises:
        ArtifactError: An artefact or a half-made one with another fingerprint lies there.
    """
    if (folder / MANIFEST).exists():
        differences = _differences(read_manifest(folder)["fingerprint"], fingerprint.flat())
        if not differences:
            return False
        if not force:
            raise ArtifactError(_refusal(folder, differences))
    work = folder.with_name(folder.name + ".partial")
    _open_work(work, fingerprint, force=force)
    started = time.perf_counter()
    counts = make(work)
    _finish(work, fingerprint, counts, seconds=time.perf_counter() - started)
    _replace(work, folder)
    return True


def _open_work(work: Path, fingerprint: Fingerprint, *, force: bool) -> None:
    begun = work / ".fingerprint.json"
    if work.exists():
        known = json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else {}
        differences = _differences(known, fingerprint.flat())
        # Only appended shards are worth keeping; anything else half-made is made again without a word.
        if differences and known and any(work.rglob("shard-*.parquet")) and not force:
            raise ArtifactError(_refusal(work, differences))
        if differences:
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(begun, fingerprint.flat())


def _finish(work: Path, fingerprint: Fingerprint, counts: Mapping[str, Any], *, seconds: float) -> None:
    (work / ".fingerprint.json").unlink()
    files = {
        path.relative_to(work).as_posix(): sha256_of_file(path)
        for path in sorted(work.rglob("*"))
        if path.is_file() and path.relative_to(work).as_posix() != MANIFEST
    }
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


def _replace(work: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(work, folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _differences(known: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    keys = sorted(known.keys() | asked.keys())
    return [
        f"{key}: was {known.get(key, 'absent')}, asked {asked.get(key, 'absent')}"
        for key in keys
        if known.get(key) != asked.get(key)
    ]


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
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(f"{path}: format_version {manifest.get('format_version')!r}, expected {FORMAT_VERSION}")
    return manifest


def content_sha256(folder: Path) -> str:
    """The sha256 that stands for an artefact's whole content; what its children record as parent."""
    return str(read_manifest(folder)["sha256"])


def verify(folder: Path) -> None:
    """Compare every file of an artefact with its manifest.

    Raises:
        ArtifactError: A file is missing, extra or changed; all of them are named.
    """
    expected = read_manifest(folder)["files"]
    found = {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }
    wrong = [f"{name}: missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name}: not in the manifest" for name in found.keys() - expected.keys()]
    wrong += [f"{name}: sha256 differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    if wrong:
        raise ArtifactError(f"{folder} is damaged:\n  " + "\n  ".join(sorted(wrong)))


# -- files -----------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the new one, never a part."""
    with _atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; an error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def write_table(path: Path, name: str, rows: Iterable[Any]) -> int:
    """Write dataclass records or dicts as one Parquet file with the schema of table ``name``.

    Returns:
        The number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema(name)
    # Not asdict, which copies every value of every row deeply.
    records = [{name: getattr(row, name) for name in schema.names} if is_dataclass(row) else row for row in rows]
    table = pa.Table.from_pylist(records, schema=schema)
    with _atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return int(table.num_rows)


@contextmanager
def table_writer(path: Path, name: str) -> Iterator[Callable[[Sequence[pa.Array]], None]]:
    """Write one Parquet file with the schema of table ``name`` group by group, for tables that do not fit into memory.

    Yields:
        A function that writes one group of rows, given its columns in the order of the schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema(name)
    with _atomic(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield lambda columns: writer.write_table(pa.table(list(columns), schema=schema))
        writer.close()


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file.

    Raises:
        ArtifactError: The file is missing or not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path}: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write torch tensors as safetensors, atomically."""
    from safetensors.torch import save_file

    with _atomic(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, str(temporary))


def read_tensors(path: Path) -> dict[str, Any]:
    """Read safetensors as torch tensors on the CPU."""
    from safetensors.torch import load_file

    return dict(load_file(str(path)))


class Shards:
    """Append-only rows for long generation: every batch becomes one finished Parquet file.

    A killed run loses at most the batch it was working on, and no shard can be torn because each is
    written to a temporary file and renamed.

    Args:
        folder: Where the shards lie, inside a stage's work folder.
        table: The schema name of the rows.

    Example:
        >>> import tempfile
        >>> shards = Shards(Path(tempfile.mkdtemp()), "decisions")
        >>> shards.append([{"decision_id": "u#1", "user_id": "u", "position": 1, "split": "test"}])
        >>> sorted(shards.done()), shards.read().num_rows
        (['u#1'], 1)
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.folder = folder
        self.table = table
        folder.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.parquet"))

    def append(self, rows: Iterable[Any]) -> None:
        """Add one batch of rows as the next shard."""
        write_table(self.folder / f"shard-{len(self._files()):05d}.parquet", self.table, rows)

    def done(self) -> set[str]:
        """The decision ids that already have rows."""
        import pyarrow.parquet as pq

        return {
            key
            for file in self._files()
            for key in pq.read_table(file, columns=["decision_id"])["decision_id"].to_pylist()
        }

    def read(self) -> pa.Table:
        """All rows in the order they were added."""
        import pyarrow as pa

        tables = [read_table(file) for file in self._files()]
        return pa.concat_tables(tables) if tables else table_schema(self.table).empty_table()

    def remove(self) -> None:
        """Delete the shards once their rows are in the artefact's own file."""
        shutil.rmtree(self.folder)


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(parts: Iterable[str]) -> str:
    """Hex sha256 of a series of texts; the border between two texts counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the libraries that decide results, for manifests and reports."""
    versions = {}
    for name in ("pulse-hf", *_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
