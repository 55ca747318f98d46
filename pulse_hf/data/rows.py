"""Rows of text files and Parquet, plain or gzip, streamed with the place each row stands at.

The readers here turn a chunk of lines into rows one by one and name file and line of whatever is wrong;
:mod:`~pulse_hf.data.event_tables` asks them only where its fast way declines.
"""

from __future__ import annotations

import ast
import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pulse_hf.data.chunks import MAX_EXCERPT_CHARS, MAX_LINE_BYTES, Chunk, excerpt, expect_file, read_chunks

logger = logging.getLogger(__name__)

_JSON = (".jsonl", ".json", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = ".parquet"
_REMEDY = "Correct the row, or set drop_bad_rows to drop and count such rows."

Row = Mapping[str, Any]


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
        self.told = f"{place}: found {excerpt(value)}, expected {expected}."
        super().__init__(f"{self.told} {_REMEDY}")
        self.reason = reason


@dataclass(frozen=True)
class Layout:
    """How the lines of a file without JSON objects and without a header are written.

    Args:
        delimiter: What stands between two columns; ``""`` for a Python literal on each line (Amazon 2014).
        names: The columns, in order; there are no quotes.
    """

    delimiter: str = ""
    names: tuple[str, ...] = ()


def kind_of(path: Path, layout: Layout | None) -> str:
    """``"json"``, ``"csv"``, ``"parquet"`` or, with a declared layout, ``"columns"`` or ``"literal"``.

    Raises:
        ValueError: The name of the file does not tell.
    """
    if layout is not None:
        return "columns" if layout.delimiter else "literal"
    suffix = _suffix(path)
    if suffix in _JSON:
        return "json"
    if suffix in _DELIMITERS:
        return "csv"
    if suffix == _PARQUET:
        return "parquet"
    known = ", ".join((*_JSON, *_DELIMITERS))
    raise ValueError(
        f"{path}: unknown kind of file. Expected a name that ends in {known}, with or without .gz, or in {_PARQUET}."
    )


def delimiter_of(path: Path) -> str:
    """What separates the columns of a CSV or TSV file, by its name."""
    return _DELIMITERS[_suffix(path)]


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def read_rows(
    path: Path,
    required: list[str],
    repaired: Counter[str],
    layout: Layout | None = None,
    *,
    encoding: str = "utf-8",
    salvage: bool = False,
    wanted: Collection[str] | None = None,
    tell: Callable[[Iterable[str]], None] | None = None,
) -> Iterator[tuple[str, Row | RowError]]:
    """Stream the rows of a file.

    Args:
        path: ``.jsonl``, ``.json``, ``.ndjson`` (one object a line), ``.csv`` or ``.tsv`` (with a header), each also
            with ``.gz``, or ``.parquet``. Compression is told by the first bytes, not by the name.
        required: Columns that a header must have. (A JSON line may lack any key.)
        repaired: Where repairs of the file itself are counted.
        layout: How a file of another kind is written.
        encoding: How the bytes of a text file are read.
        salvage: Of a damaged gzip file take the whole lines before the damage.
        wanted: The columns of a Parquet file to read, if it has them; all by default.
        tell: Is told the columns of a Parquet file.

    Yields:
        ``file:line`` and the row; a row that is damaged in itself comes as an error, so that the reader
        can raise or count it.

    Raises:
        ValueError: The file as a whole cannot be read.
    """
    kind = kind_of(path, layout)
    if kind == "parquet":
        for first, batch in parquet_batches(path, required, wanted, tell):
            yield from batch_rows(path, first, batch)
        return
    chunks = read_chunks(path, repaired, encoding, salvage=salvage)
    if kind == "csv":
        yield from csv_rows(path, chunks, required, delimiter_of(path))
    else:
        for chunk in chunks:
            yield from json_rows(chunk) if kind == "json" else layout_rows(chunk, layout or Layout())


def json_rows(chunk: Chunk, read: Collection[str] | None = None) -> Iterator[tuple[str, Row | RowError]]:
    """One JSON object a line, read strictly: no NaN, no key twice, nothing but an object.

    Args:
        chunk: Whole lines.
        read: The keys that are read, where others may stand twice or be NaN; ``None`` for all.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
    if read is not None:
        decoder = json.JSONDecoder(object_pairs_hook=_Names, parse_constant=_Constant, parse_int=_integer)
    for number, text in chunk.lines():
        if text.isspace():
            continue
        where = f"{chunk.path}:{number}"
        try:
            row = decoder.decode(text)
            if isinstance(row, _Names):
                row.require_once(read or ())
            for name in read or () if isinstance(row, dict) else ():
                _require_no_constant(row.get(name))
        except (ValueError, RecursionError) as error:
            expected = f"one JSON object ({str(error)[:MAX_EXCERPT_CHARS]})"
            yield where, RowError(where, "", text.strip(), expected, "not JSON")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            yield where, RowError(where, "", text.strip(), "one JSON object a line", "not a JSON object")


class _Names(dict[str, Any]):
    """An object that knows which of its keys stand in it more than once: that matters where they are read."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        often = Counter(name for name, _ in pairs) if len(self) != len(pairs) else {}
        self.twice = [name for name, times in often.items() if times > 1]

    def require_once(self, names: Collection[str]) -> None:
        for name in self.twice:
            if name in names:
                raise ValueError(f"key {excerpt(name)} twice in one object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = _Names(pairs)
    row.require_once(row)
    return row


def _integer(text: str) -> Any:
    """An integer; one of more digits than Python reads is like a NaN, under a key that nobody may read."""
    try:
        return int(text)
    except ValueError:
        return _Constant(text)


class _Constant(str):
    """NaN, an infinity or an endless integer, which are none of JSON's or Python's, where nobody may read them."""


def _require_no_constant(value: Any) -> None:
    if isinstance(value, _Constant):
        _no_constant(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _require_no_constant(part)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def layout_rows(chunk: Chunk, layout: Layout) -> Iterator[tuple[str, Row | RowError]]:
    """Rows of a file with a declared layout."""
    for number, text in chunk.lines():
        if text.isspace():
            continue
        where = f"{chunk.path}:{number}"
        if not layout.delimiter:
            yield where, _literal(where, text)
            continue
        cells = text.rstrip("\r\n").split(layout.delimiter)
        if len(cells) == len(layout.names):
            yield where, dict(zip(layout.names, cells, strict=True))
        else:
            expected = f"{len(layout.names)} columns between {layout.delimiter!r}, not {len(cells)}"
            yield where, RowError(where, "", text.strip(), expected, "wrong number of columns")


def _literal(where: str, text: str) -> Row | RowError:
    try:
        row = ast.literal_eval(text)  # reads literals and nothing else: no name, no call
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        expected = f"one Python dictionary of literals ({str(error)[:MAX_EXCERPT_CHARS]})"
        return RowError(where, "", text.strip(), expected, "not a Python literal")
    if isinstance(row, dict):
        return row
    return RowError(where, "", text.strip(), "one Python dictionary a line", "not a Python dictionary")


def csv_rows(
    path: Path, chunks: Iterable[Chunk], required: list[str], delimiter: str, header: list[str] | None = None
) -> Iterator[tuple[str, Row | RowError]]:
    """Rows of a CSV file; a quoted cell may hold line feeds, so the chunks are read as one stream.

    Args:
        path: The file, for messages.
        chunks: The lines from the header on, or from any row on if ``header`` is given.
        required: Columns that the header must have.
        delimiter: What stands between two columns.
        header: The columns, if the header has been read already.
    """
    stream = iter(chunks)
    first = next(stream, None)
    start = first.first_line if first else 1
    last = first

    def lines() -> Iterator[str]:
        nonlocal last
        for last in chain([first] if first else [], stream):
            yield from (line for _, line in last.lines())

    csv.field_size_limit(MAX_LINE_BYTES)  # of this process; 131,072 else, where the fast way knows no limit
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}:{start + reader.line_num}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if last and last.salvaged and "end of data" in str(error):
                logger.warning("%s: the row that begins here has lost its end and is left out", where)
                return
            raise ValueError(f"{where}: {error} in the row that begins here. Check its quotes.") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            check_header(where, header, required, delimiter)
        elif len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            expected = f"{len(header)} columns as in the header, not {len(cells)}"
            yield where, RowError(where, "", delimiter.join(cells), expected, "wrong number of columns")


def check_header(where: str, header: list[str], required: list[str], delimiter: str) -> None:
    """Refuse a header that lacks a declared column or names one twice."""
    absent = [name for name in required if name not in header]
    if absent:
        remedy = "Declare the columns as the file names them, and name a tab-separated file .tsv."
        if len(header) == 1 and ";" in header[0]:
            remedy = "Files cut at ';' are not read: write it with commas, or with tabs as .tsv."
        raise ValueError(f"{where}: the header has {header} (cut at {delimiter!r}), expected also {absent}. {remedy}")
    if len(set(header)) != len(header):
        raise ValueError(f"{where}: the header names a column twice: {header}. Give each column its own name.")


def parquet_batches(
    path: Path,
    required: list[str],
    wanted: Iterable[str] | None = None,
    tell: Callable[[Iterable[str]], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Record batches of a Parquet file, each with the number of its first row (from 1).

    Args:
        path: The file.
        required: Columns it must have.
        wanted: Columns to read, if it has them; all by default.
        tell: Is told the columns that the file has.

    Raises:
        ValueError: The file is damaged, is not Parquet, is packed in a way that is not read here, lacks a column or
            has it twice, or holds text that is not UTF-8.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    expect_file(path)
    wanted = None if wanted is None else set(wanted)
    number = 1
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            absent = [name for name in required if name not in names]
            if absent:
                raise ValueError(
                    f"{path}: the columns are {names}, expected also {absent}. "
                    "Declare the columns as the file names them."
                )
            twice = sorted(name for name in {*required, *(wanted or ())} if names.count(name) > 1)
            if twice:
                raise ValueError(f"{path}: the columns name {twice} twice: {names}. Give each column its own name.")
            if tell is not None:
                tell(names)
            columns = names if wanted is None else [name for name in names if name in wanted]
            for batch in file.iter_batches(batch_size=65_536, columns=columns):
                _require_text(path, number, batch)
                yield number, batch
                number += batch.num_rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's word, not Parquet's: a bad disk, no memory, no access any more
        raise ValueError(
            f"{path}: not a whole Parquet file that can be read here, after {number - 1} good rows ({error}). Copy or "
            "download it again, or write it anew with zstd or snappy compression."
        ) from error


def batch_rows(path: Path, first: int, batch: Any) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet batch with the place of each; a value that Python has no form for comes as its text.

    Nothing is made before the first one is asked for.
    """
    try:
        rows = batch.to_pylist()
    except (OverflowError, ValueError):  # a time beyond its calendar: whoever needs it says which
        columns = {name: list(map(_value, batch[name])) for name in batch.schema.names}
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    for number, row in enumerate(rows, first):
        yield f"{path}: row {number}", row


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        return f"{cell.value} ({cell.type})"


def _require_text(path: Path, first: int, batch: Any) -> None:
    """Refuse text that is not UTF-8: other writers put it into Parquet, and no reader looks."""
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{path}: rows {first} to {first + len(column) - 1}: column {name!r} is damaged or not UTF-8 "
                f"({str(error)[:MAX_EXCERPT_CHARS]}). Write the file anew, with its text in UTF-8."
            ) from error
