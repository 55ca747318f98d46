"""A text file as chunks of whole lines: damage, wrong kinds and wrong encodings are named, never read past."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8_000_000  # ours: what is held of a file at a time
MAX_LINE_BYTES = 16_000_000  # ours: longer lines are damage, and would be held in memory whole
MAX_EXCERPT_CHARS = 80
_COMPARED_BYTES = 65_536
_END_LOST = "damaged end left out"
_GZIP = b"\x1f\x8b"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
MAX_UNPACKED_RATIO, UNSUSPICIOUS_BYTES = 200, 1_000_000_000  # ours: text packs 3 to 20 times, a bomb a thousand times
_FOREIGN = {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"\x80": "a pickle"}


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file.

    Args:
        path: The file.
        first_line: Number of the first line, from 1.
        text: The lines, each with its line feed (the last of a file may lack it).
        salvaged: Whether what stood after these lines is lost.
    """

    path: Path
    first_line: int
    text: str
    salvaged: bool = False

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of each line. Only a line feed ends a line: U+2028 and others are part of texts."""
        lines = self.text.split("\n")
        torn = lines.pop()  # "" after the last line feed
        for number, line in enumerate(lines, self.first_line):
            yield number, line + "\n"
        if torn:
            yield self.first_line + len(lines), torn


def excerpt(value: object) -> str:
    """A value as it can be shown in a message: at most 80 visible characters.

    >>> len(excerpt("x" * 1_000_000))
    80
    """
    if isinstance(value, str | bytes):
        value = value[:MAX_EXCERPT_CHARS]
    elif isinstance(value, int) and abs(value) >= 10**MAX_EXCERPT_CHARS:
        return "an integer of more than 80 digits"
    text = repr(value)
    return text if len(text) <= MAX_EXCERPT_CHARS else text[: MAX_EXCERPT_CHARS - 3] + "..."


def read_chunks(
    path: Path,
    repaired: Counter[str],
    encoding: str = "utf-8",
    chunk_bytes: int = CHUNK_BYTES,
    *,
    salvage: bool = False,
) -> Iterator[Chunk]:
    """Whole lines of a text file, plain or gzip, about ``chunk_bytes`` of them at a time.

    Args:
        path: The file.
        repaired: Where a removed byte order mark and a salvaged end are counted.
        encoding: How the bytes are read.
        chunk_bytes: How much is read at a time.
        salvage: Of a damaged gzip file take the whole lines before the damage, instead of raising.

    Raises:
        ValueError: The file is absent, empty, damaged, of a foreign kind or has a line beyond all measure.
    """
    compressed = _is_gzip(path)
    number, sound = 1, repaired[_END_LOST]
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        for data in _whole_lines(path, stream, chunk_bytes, repaired, salvage):
            if number == 1:
                data = _without_mark(path, data, repaired)
            yield Chunk(path, number, _decoded(path, number, data, encoding), repaired[_END_LOST] > sound)
            number += data.count(b"\n")


def ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks in their order, each read and unpacked while the one before it is worked on."""
    reader = ThreadPoolExecutor(1)
    try:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk
    finally:
        # Not waited for: a generator that was given up may be closed by the garbage collector, within a thread that is
        # just starting and holds the lock that joining a thread takes.
        reader.shutdown(wait=False)


def _whole_lines(path: Path, stream: Any, chunk_bytes: int, repaired: Counter[str], salvage: bool) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = lines = total = 0
    most = max(UNSUSPICIOUS_BYTES, MAX_UNPACKED_RATIO * path.stat().st_size)
    while True:
        try:
            data = stream.read1(chunk_bytes)
        except _DAMAGED as error:
            good = lines + sum(part.count(b"\n") for part in parts)
            if not salvage:
                raise ValueError(
                    f"{path}: the compressed stream is damaged or ends early after {good} good lines ({error}). "
                    "Copy or download the file again, or set salvage to read these lines alone."
                ) from error
            logger.warning("%s: damaged after %d good lines (%s); only these are read", path, good, error)
            repaired[_END_LOST] += 1
            whole = b"".join(parts)
            parts = [whole[: whole.rfind(b"\n") + 1]]  # the last line may be torn
            break
        if not data:
            break
        parts.append(data)
        size += len(data)
        total += len(data)
        if total > most:
            raise ValueError(
                f"{path}: unpacks to more than {most:,} bytes, {MAX_UNPACKED_RATIO} times its size; expected text. If "
                "that is right, unpack it first."
            )
        if size < chunk_bytes:
            continue
        whole = b"".join(parts)
        end = whole.rfind(b"\n") + 1
        if len(whole) - end > MAX_LINE_BYTES:
            number = lines + whole.count(b"\n") + 1
            raise ValueError(
                f"{path}:{number}: the line has more than {MAX_LINE_BYTES} bytes; expected one row. End each row with "
                "a line feed, or take the line out."
            )
        parts, size = [whole[end:]], len(whole) - end
        if end:
            lines += whole.count(b"\n")
            yield whole[:end]
    rest = b"".join(parts)
    if rest:
        yield rest


def expect_file(path: Path) -> None:
    """Refuse what is not a file that can be read, before it is opened: opening a pipe would wait for ever.

    Raises:
        ValueError: It is not; the message says what is there.
    """
    try:
        found = _kind_of_entry(path)
    except PermissionError:
        found = "a folder on the way that may not be entered"
    if found:
        raise ValueError(
            f"{path}: found {found}, expected a file. Check the path (relative to the current folder) and its rights."
        )


def _kind_of_entry(path: Path) -> str:
    """What is at a path instead of a file that can be read; ``""`` if such a file is there."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, where there is nothing"
    if not path.exists():
        return "nothing"
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "a pipe or device"
    return "" if os.access(path, os.R_OK) else "a file that this user may not read"


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same text, each plain or gzip; they are read only as far as they are equal.

    A damaged file is like no other here: its reader tells what is wrong with it, or saves what it can.
    """
    expect_file(one)
    expect_file(other)
    try:
        with _unpacked(one) as first, _unpacked(other) as second:
            while True:
                pair = first.read(_COMPARED_BYTES), second.read(_COMPARED_BYTES)
                if pair[0] != pair[1] or not pair[0]:
                    return pair[0] == pair[1]
    except _DAMAGED:
        return False


def find_twins(paths: Iterable[Path]) -> tuple[Path, Path] | None:
    """Two files that hold the same text, as :func:`same_content` has it; only those that begin alike are compared."""
    begun: dict[bytes, list[Path]] = {}
    for path in paths:
        beginning = _beginning(path)
        if not beginning:
            continue  # empty or damaged, of which its reader tells
        alike = begun.setdefault(hashlib.sha256(beginning).digest(), [])
        for other in alike:
            if same_content(other, path):
                return other, path
        alike.append(path)
    return None


def _beginning(path: Path) -> bytes:
    try:
        with _unpacked(path) as stream:
            return bytes(stream.read(_COMPARED_BYTES))
    except _DAMAGED:
        return b""


def _unpacked(path: Path) -> Any:
    with path.open("rb") as stream:
        compressed = stream.read(2) == _GZIP
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _is_gzip(path: Path) -> bool:
    expect_file(path)
    with path.open("rb") as stream:
        magic = stream.read(4)
    if not magic:
        raise ValueError(
            f"{path}: the file is empty (0 bytes), expected rows. Copy or download it again, or leave it out."
        )
    for start, name in _FOREIGN.items():
        if magic.startswith(start):
            raise ValueError(
                f"{path}: found {name}, but its name tells of text. Name a Parquet file .parquet; unpack or convert "
                "any other."
            )
    return magic.startswith(_GZIP)


def _without_mark(path: Path, data: bytes, repaired: Counter[str]) -> bytes:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: the file is UTF-16, expected UTF-8. Convert it first.")
    if data.startswith(codecs.BOM_UTF8):
        repaired["byte order mark removed"] += 1
        return data[len(codecs.BOM_UTF8) :]
    return data


def _decoded(path: Path, number: int, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = number + data.count(b"\n", 0, error.start)
        place = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise ValueError(
            f"{path}:{line}: byte {place} of the line ({excerpt(data[error.start : error.start + 8])}) is not "
            f"{encoding.upper()}. Convert the file to UTF-8, or name its encoding (prepare.encoding, such as latin-1)."
        ) from error
