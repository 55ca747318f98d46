"""Arrow's own parsers, used where they read exactly what the strict reader would; else they decline."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pulse_hf.data.arrays import numbers
from pulse_hf.data.chunks import Chunk
from pulse_hf.data.columns import Columns, Format
from pulse_hf.data.values import ISO, are_ids, is_time

if TYPE_CHECKING:
    import pyarrow as pa

_SEPARATOR = "\x1f"  # stands for a delimiter of several characters, which Arrow does not take


def event_schema() -> pa.Schema:
    """Columns of a table of interactions before its texts are joined and cleaned."""
    import pyarrow as pa

    # An id occurs in many rows: each is stored, checked and looked up once in a chunk.
    text, number, name = pa.string(), pa.int64(), pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        {
            "user_id": name,
            "item_id": name,
            "timestamp": number,
            "rating": pa.float64(),
            "summary": text,
            "review": text,
        }
    )


def _types(form: Format) -> dict[str, Any] | None:
    """Arrow type of each declared column; ``None`` for what the strict way reads: a column with two roles, dates."""
    if form.timestamp_unit == ISO and not form.columns.order:
        return None
    roles = _roles(form.columns)
    schema = event_schema()
    types = {name: _as_read(schema.field(role).type) for role, name in roles.items()}
    return types if len(types) == len(roles) else None


def _as_read(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _roles(columns: Columns) -> dict[str, str]:
    names = {
        "user_id": columns.user_id,
        "item_id": columns.item_id,
        "timestamp": columns.when,
        "rating": columns.rating,
        "summary": columns.summary,
        "review": columns.review,
    }
    return {role: name for role, name in names.items() if name}


def from_json(chunk: Chunk, form: Format, *, ignore_others: bool) -> pa.Table | None:
    """Rows of JSON objects, one a line; a key that is not declared is passed over or makes it decline."""
    import pyarrow as pa
    from pyarrow import json

    types = _types(form)
    # A blank line, or an object on two, could make up for a line that holds two: every line must begin and end one.
    lines = chunk.text.count("\n") + (not chunk.text.endswith("\n"))
    ends = chunk.text.count("}\n") + chunk.text.count("}\r\n") + chunk.text.endswith("}")
    if types is None or not chunk.text.startswith("{") or chunk.text.count("\n{") != lines - 1 or ends != lines:
        return None
    others = "ignore" if ignore_others else "error"
    parse = json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior=others)
    try:
        table = json.read_json(pa.BufferReader(chunk.text.encode()), parse_options=parse)
    except (pa.ArrowException, UnicodeEncodeError):
        return None
    return _by_role(table, form) if table.num_rows == lines else None


def from_layout(chunk: Chunk, form: Format) -> pa.Table | None:
    """Rows of a file with a declared layout."""
    layout = form.layout
    if layout is None or not layout.delimiter or (len(layout.delimiter) > 1 and _SEPARATOR in chunk.text):
        return None
    single = layout.delimiter if len(layout.delimiter) == 1 else _SEPARATOR
    text = chunk.text if single == layout.delimiter else chunk.text.replace(layout.delimiter, single)
    return from_cells(text, list(layout.names), single, form)


def plainly_quoted(text: str, delimiter: str) -> bool:
    """Whether every quote opens or closes a whole cell that holds neither quotes nor line feeds.

    >>> plainly_quoted('"a,b",c', ","), plainly_quoted('"a""b",c', ","), plainly_quoted('a"b,c', ",")
    (True, False, False)
    """
    quotes = text.count('"')
    if not quotes:
        return True
    cell = re.compile(rf'(?:\A|(?<=[\n{re.escape(delimiter)}]))"[^"\n]*"(?=[\r\n{re.escape(delimiter)}]|\Z)')
    return 2 * sum(1 for _ in cell.finditer(text)) == quotes


def from_cells(text: str, names: list[str], delimiter: str, form: Format, *, quoted: bool = False) -> pa.Table | None:
    """Rows of cells, ``names`` from left to right; quotes are letters unless ``quoted``."""
    import pyarrow as pa
    from pyarrow import csv

    types = _types(form)
    # Arrow reads 0x10 as a number, a lone carriage return as the end of a row, and passes over a byte order mark where
    # text begins; the strict reader does not.
    if (
        types is None
        or text.startswith("\ufeff")
        or "0x" in text
        or "0X" in text
        or text.count("\r") != text.count("\r\n")
        or not text
    ):
        return None
    read = csv.ReadOptions(column_names=names, block_size=1 << 20)
    parse = csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False)
    convert = csv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=False
    )
    try:
        table = csv.read_csv(pa.BufferReader(text.encode()), read, parse, convert)
    except pa.ArrowException:
        return None
    return _by_role(table, form) if table.num_rows == _lines(text) else None


def from_batch(batch: pa.RecordBatch, form: Format, repaired: Counter[str]) -> pa.Table | None:
    """Rows of Parquet; integral ids become text and are counted."""
    import pyarrow as pa

    types = _types(form)
    if types is None:
        return None
    columns = {}
    numbers = 0
    for name, kind in types.items():
        values = batch.column(name)
        text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        whole = pa.types.is_integer(values.type)
        fits = {
            pa.string(): text or (whole and name in (form.columns.user_id, form.columns.item_id)),
            pa.int64(): whole,
            pa.float64(): whole or pa.types.is_floating(values.type),
        }[kind]
        if not fits:
            return None
        numbers += len(values) if whole and kind == pa.string() else 0
        try:
            columns[name] = values.cast(kind)
        except pa.ArrowInvalid:
            return None  # an integer that the type does not hold: the strict reader names its row
    if numbers and not any(column.null_count for column in columns.values()):
        repaired["number as id"] += numbers
    elif numbers:
        return None  # the strict reader counts the ids that are there
    return _by_role(pa.table(columns), form)


def _lines(text: str) -> int | None:
    """Number of lines, if none is blank or indented: a blank line could make up for a line that holds two rows."""
    blank = text[:1] in "\n\r\t " or any(start in text for start in ("\n\n", "\n\r", "\n ", "\n\t"))
    return None if blank else text.count("\n") + (not text.endswith("\n"))


def _by_role(table: pa.Table, form: Format) -> pa.Table:
    import pyarrow as pa

    schema = event_schema()
    roles = _roles(form.columns)
    columns = [
        _as(table[roles[field.name]], field.type) if field.name in roles else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema)


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return column.combine_chunks().dictionary_encode()
    return column if column.type == kind else column.cast(kind)


def faultless(table: pa.Table, form: Format) -> bool:
    """Whether the strict reader would keep every row as it is."""
    import pyarrow.compute as pc

    needed = [table[name] for name in ("user_id", "item_id", "timestamp")]
    optional = [table[role] for role in _roles(form.columns) if role in ("rating", "summary", "review")]
    if any(column.null_count for column in needed) or any(c.null_count == len(c) for c in optional):
        return False
    if not all(are_ids(chunk.dictionary.to_pylist()) for column in needed[:2] for chunk in column.chunks):
        return False
    if not form.columns.order:
        times = pc.min_max(table["timestamp"]).as_py()
        if not all(is_time(time, form.timestamp_unit) for time in times.values()):
            return False
    low, high = form.rating_range
    stars = numbers(table["rating"].drop_null())
    return bool(((stars >= low) & (stars <= high)).all())  # false for NaN, too
