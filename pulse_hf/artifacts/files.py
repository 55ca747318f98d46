"""Files of a run: written whole or not at all, read with errors that name them; safetensors, JSON and Parquet only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.schema import table_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says of a disk that is full, or full for this user or this file."""


class ArtifactError(RuntimeError):
    """An artefact is missing, damaged, or was made from other settings or inputs than what is asked for."""


class DiskFullError(ArtifactError):
    """There is no room for a file; what lay in its place is still there."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the new one, never a part."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that a reader sees the old one or the new one; one with the same bytes is left alone."""
    if not target.is_file() or sha256_of_file(target) != sha256_of_file(source):
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)


def read_json(path: Path) -> Any:
    """Read JSON; an error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
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
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield lambda columns: writer.write_table(pa.table(list(columns), schema=schema))
        writer.close()


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file.

    Raises:
        ArtifactError: The file is missing, damaged (pages have checksums) or not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path}: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write torch tensors as safetensors, atomically."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, str(temporary))


def read_tensors(path: Path) -> dict[str, Any]:
    """Read safetensors as torch tensors on the CPU.

    Raises:
        ArtifactError: The file is missing, cut short or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(path)))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {error}. Copy it again, or make it anew.") from error


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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    Raises:
        DiskFullError: There is no room; the file that was there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with room_for(path):
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Tell a full disk by name, whoever wrote: Python, Arrow, or safetensors, whose errors are no ``OSError``.

    Raises:
        DiskFullError: There is no room.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _system_error(error)
        if number not in NO_ROOM:
            raise
        named = getattr(error, "filename", None)  # a cache may lie on another disk
        where = Path(named) if isinstance(named, str) and Path(named).parent.is_dir() else path
        free = shutil.disk_usage(next(one for one in where.absolute().parents if one.is_dir())).free
        raise DiskFullError(f"{no_room(str(where), number)} {free:,} bytes are free.") from error


def no_room(where: str, number: int) -> str:
    """The sentence about a full disk.

    >>> no_room("runs/demo", errno.ENOSPC)
    'runs/demo: no room (No space left on device). Nothing is lost: make room and run the same command again.'
    """
    named = f"{where}: " if where else ""
    return f"{named}no room ({os.strerror(number)}). Nothing is lost: make room and run the same command again."


def _system_error(error: Exception) -> int | None:
    # Torch tells that a write failed and not why; there is hardly another reason.
    if isinstance(error, RuntimeError) and re.search(
        "PytorchStreamWriter|inline_container|iostream error", str(error)
    ):
        return errno.ENOSPC
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def fsync(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_files(folder: Path, names: Iterable[str] | None = None) -> None:
    """Bring files of a folder to the disk, and the entries of the folders that they lie in.

    Args:
        folder: Where they are.
        names: Their paths inside; all files by default.
    """
    paths = (
        [path for path in folder.rglob("*") if path.is_file()] if names is None else [folder / one for one in names]
    )
    for path in paths:
        fsync(path)
    for parent in sorted({parent for path in paths for parent in path.parents if parent.is_relative_to(folder)}):
        fsync(parent)
