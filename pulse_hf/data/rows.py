"""Rows of JSON-lines and CSV files, gzip or plain, streamed with the place each row stands at."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 16_000_000  # ours: longer lines are damage, and would be held in memory whole
MAX_EXCERPT_CHARS = 80
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".json", ".ndjson")
_FOREIGN = {b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"\x80": "a pickle"}
_REMEDY = "Correct the row, or set drop_bad_rows to drop and count such rows."


class RowError(ValueError):
    """One row cannot be read.

    Args:
        where: ``file:line``.
        field: The column, or ``""`` if the row as a whole is at fault.
        value: What was found.
        expected: What should be there.
        reason: The short reason under which a dropped row is counted.
    """

    def __init__(self, where: str, field: str, value: object, expected: str, reason: str) -> None:
        place = f"{where}: field {field!r}" if field else where
        super().__init__(f"{place}: found {excerpt(value)}, expected {expected}. {_REMEDY}")
        self.reason = reason


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


def read_rows(
    path: Path, required: list[str], repaired: Counter[str]
) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    """Stream the rows of a file.

    Args:
        path: ``.jsonl``, ``.json``, ``.ndjson`` (one object a line), ``.csv`` or ``.tsv`` (with a header), or one of
            these with ``.gz``. Compression is told by the first bytes, not by the name.
        required: Columns that the header of a CSV must have. (A JSON line may lack any key.)
        repaired: Where repairs of the file itself are counted.

    Yields:
        ``file:line`` and the row; a row that is damaged in itself comes as an error, so that the reader
        can raise or count it.

    Raises:
        ValueError: The file as a whole cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind in _JSON:
        yield from _json_rows(path, repaired)
    elif kind in _DELIMITERS:
        yield from _csv_rows(path, required, repaired, _DELIMITERS[kind])
    else:
        known = ", ".join((*_JSON, *_DELIMITERS))
        raise ValueError(f"{path}: unknown kind of file. Expected a name that ends in {known}, with or without .gz.")


def _json_rows(path: Path, repaired: Counter[str]) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    for number, text in _lines(path, repaired):
        if text.isspace():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            expected = f"one JSON object ({str(error)[:MAX_EXCERPT_CHARS]})"
            yield where, RowError(where, "", text.strip(), expected, "not JSON")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            yield where, RowError(where, "", text.strip(), "one JSON object a line", "not a JSON object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise ValueError(f"key {excerpt(twice[0])} twice in one object")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _csv_rows(
    path: Path, required: list[str], repaired: Counter[str], delimiter: str
) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    reader = csv.reader((text for _, text in _lines(path, repaired)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: {error} in the row that begins here. Check its quotes.") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            _check_header(where, header, required, delimiter)
        elif len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            expected = f"{len(header)} columns as in the header, not {len(cells)}"
            yield where, RowError(where, "", delimiter.join(cells), expected, "wrong number of columns")


def _check_header(where: str, header: list[str], required: list[str], delimiter: str) -> None:
    absent = [name for name in required if name not in header]
    if absent:
        raise ValueError(
            f"{where}: the header has {header} (cut at {delimiter!r}), expected also {absent}. "
            "Declare the columns as the file names them, and name a tab-separated file .tsv."
        )
    if len(set(header)) != len(header):
        raise ValueError(f"{where}: the header names a column twice: {header}. Give each column its own name.")


def _lines(path: Path, repaired: Counter[str]) -> Iterator[tuple[int, str]]:
    """Number and text of each line. Only a line feed ends a line: U+2028 and others are part of texts."""
    compressed = _is_gzip(path)
    number = 0
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        while True:
            try:
                line = stream.readline(MAX_LINE_BYTES + 1)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{path}: the compressed stream is damaged or ends early after {number} good lines ({error}). "
                    "Copy or download the file again."
                ) from error
            if not line:
                return
            number += 1
            if number == 1:
                line = _without_mark(path, line, repaired)
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{path}:{number}: the line has more than {MAX_LINE_BYTES} bytes; expected one row.")
            yield number, _decoded(path, number, line)


def _is_gzip(path: Path) -> bool:
    if not path.is_file():
        found = "a folder or special file" if path.exists() else "nothing"
        raise ValueError(f"{path}: found {found}, expected a file. Check the path.")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if not magic:
        raise ValueError(f"{path}: the file is empty (0 bytes).")
    for start, name in _FOREIGN.items():
        if magic.startswith(start):
            raise ValueError(f"{path}: found {name}, expected JSON lines, CSV or TSV, plain or gzip.")
    return magic.startswith(b"\x1f\x8b")


def _without_mark(path: Path, line: bytes, repaired: Counter[str]) -> bytes:
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: the file is UTF-16, expected UTF-8. Convert it first.")
    if line.startswith(codecs.BOM_UTF8):
        repaired["byte order mark removed"] += 1
        return line[len(codecs.BOM_UTF8) :]
    return line


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number}: byte {error.start} of the line ({excerpt(line[error.start : error.start + 8])}) is not "
            "UTF-8. Convert the file to UTF-8 first."
        ) from error
