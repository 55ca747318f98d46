"""Interactions as Arrow tables: whole chunks by Arrow's own parsers where a chunk is faultless, else row by row.

The fast way never repairs and never guesses: it is asked with a declared schema, and whatever it does not read
exactly as the strict reader of :mod:`~pulse_hf.data.rows` would (a number as id, a list as review, a quote within
a cell, a value outside its range, a line too many) sends the whole chunk to that reader, which repairs and counts
or names file, line, field and value. So speed cannot change a result.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.data.accounts import RowCount
from pulse_hf.data.arrays import texts
from pulse_hf.data.chunks import CHUNK_BYTES, Chunk, ahead, read_chunks
from pulse_hf.data.columns import Columns, Format
from pulse_hf.data.fast_tables import (
    event_schema,
    faultless,
    from_batch,
    from_cells,
    from_json,
    from_layout,
    plainly_quoted,
)
from pulse_hf.data.item_text import clean_text, without_surrogates
from pulse_hf.data.rows import (
    Row,
    RowError,
    batch_rows,
    check_header,
    csv_rows,
    delimiter_of,
    json_rows,
    kind_of,
    layout_rows,
    parquet_batches,
)
from pulse_hf.data.values import ISO, read_id, read_rating, read_text, read_when

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = Iterable[tuple[str, Row | RowError]]

_STRICT_ROWS = 50_000  # rows of one table of the strict reader
# Amazon fills an empty summary with the rating in words; these words are not the person's.
_STARS_IN_WORDS = re.compile(r"(one|two|three|four|five) stars?\Z", re.IGNORECASE)


def event_tables(
    path: Path,
    form: Format,
    count: RowCount,
    *,
    drop_bad_rows: bool = False,
    salvage: bool = False,
    strict: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[pa.Table]:
    """Read a file of interactions, some thousand at a time.

    Args:
        path: JSON lines, CSV, TSV (each also gzip), Parquet, or what ``form`` declares.
        form: Which column holds what.
        count: The account of all rows; complete when the tables are.
        drop_bad_rows: Drop and count unreadable rows instead of raising.
        salvage: Of a damaged gzip file take the whole lines before the damage.
        strict: Read every row one by one. The result is the same; tests compare the two.
        chunk_bytes: How much text is held at a time.

    Yields:
        Tables with columns ``user_id``, ``item_id``, ``timestamp`` (in the form's unit), ``rating``, ``review``, in
        the order of the file. Reviews are cleaned; a summary stands in front of its review.

    Raises:
        ValueError: A row or the file cannot be read; file, line, field and value are named.
    """
    from tqdm import tqdm

    reader = _Reader(path, form, count, drop_bad_rows, salvage)
    tables = reader.strict_tables(chunk_bytes) if strict else reader.tables(chunk_bytes)
    before = count.read  # one account may be of several shards
    with tqdm(desc=path.name, unit=" rows", disable=None, leave=False) as progress:
        for table in tables:
            progress.update(table.num_rows)
            count.kept += table.num_rows
            table = _of_five(table, form.rating_range[1], count.repaired)
            yield _worded(table, form.columns, count.repaired)
    if count.read == before:
        raise ValueError(f"{path}: no rows. Expected one interaction a line. Copy the file again, or leave it out.")
    absent = [name for name in form.columns.declared() if name not in reader.seen]
    if absent and reader.seen:
        raise ValueError(
            f"{path}: declared column {', '.join(map(repr, absent))} is in no row; the rows have "
            f"{sorted(reader.seen)}. Declare the columns as the file names them."
        )


class _Reader:
    """One file on its way to tables; ``seen`` are the columns that occurred."""

    def __init__(self, path: Path, form: Format, count: RowCount, drop: bool, salvage: bool) -> None:
        self.path, self.form, self.count, self.drop, self.salvage = path, form, count, drop, salvage
        self.seen: set[str] = set()
        self.declared = form.columns.declared()
        self.kind = kind_of(path, form.layout)

    def _chunks(self, chunk_bytes: int) -> Iterator[Chunk]:
        how = {"salvage": self.salvage}
        return ahead(read_chunks(self.path, self.count.repaired, self.form.encoding, chunk_bytes, **how))

    def strict_tables(self, chunk_bytes: int) -> Iterator[pa.Table]:
        """Every row by itself."""
        if self.kind == "parquet":
            for first, batch in parquet_batches(self.path, self.declared):
                yield from self._by_rows(batch_rows(self.path, first, _plain_times(self.path, batch, self.form)))
        elif self.kind == "csv":
            rows = csv_rows(self.path, self._chunks(chunk_bytes), self.declared, delimiter_of(self.path))
            yield from self._by_rows(rows)
        else:
            for chunk in self._chunks(chunk_bytes):
                yield from self._by_rows(self._rows(chunk))

    def tables(self, chunk_bytes: int) -> Iterator[pa.Table]:
        """Every chunk by Arrow where that is faultless, else by rows."""
        if self.kind == "parquet":
            for first, batch in parquet_batches(self.path, self.declared, self.declared, self._note_unused):
                batch = _plain_times(self.path, batch, self.form)
                repairs: Counter[str] = Counter()
                fast = from_batch(batch, self.form, repairs)
                yield from self._either(fast, batch_rows(self.path, first, batch), repairs)
        elif self.kind == "csv":
            yield from self._csv_tables(self._chunks(chunk_bytes))
        else:
            for chunk in self._chunks(chunk_bytes):
                # Until a chunk has told which columns are not read, one that holds such goes row by row.
                ignore = bool(self.count.unused)
                fast = (
                    from_json(chunk, self.form, ignore_others=ignore)
                    if self.kind == "json"
                    else from_layout(chunk, self.form)
                )
                yield from self._either(fast, self._rows(chunk))

    def _csv_tables(self, chunks: Iterator[Chunk]) -> Iterator[pa.Table]:
        delimiter = delimiter_of(self.path)
        header: list[str] | None = None
        for chunk in chunks:
            if not plainly_quoted(chunk.text, delimiter) or (header is None and chunk.text.startswith(("\n", "\r"))):
                # From here on a cell may hold line feeds: the rest of the file is one stream of rows.
                yield from self._by_rows(csv_rows(self.path, chain([chunk], chunks), self.declared, delimiter, header))
                return
            if header is None:
                line, _, rest = chunk.text.partition("\n")
                header = next(csv.reader([line.rstrip("\r")], delimiter=delimiter))
                check_header(f"{self.path}:{chunk.first_line}", header, self.declared, delimiter)
                self._note_unused(header)
                chunk = Chunk(chunk.path, chunk.first_line + 1, rest)
            fast = from_cells(chunk.text, header, delimiter, self.form, quoted=True)
            yield from self._either(fast, csv_rows(self.path, [chunk], self.declared, delimiter, header))

    def _note_unused(self, names: Iterable[str]) -> None:
        if self.form.layout is None and not self.count.unused:
            self.count.note_unused(self.path, set(names) - set(self.declared))

    def _rows(self, chunk: Chunk) -> Rows:
        return json_rows(chunk, self.declared) if self.form.layout is None else layout_rows(chunk, self.form.layout)

    def _either(self, fast: pa.Table | None, rows: Rows, repairs: Counter[str] | None = None) -> Iterator[pa.Table]:
        if fast is not None and faultless(fast, self.form):
            self.seen.update(self.declared)
            self.count.read += fast.num_rows
            self.count.repaired.update(repairs or {})
            if self.form.columns.rating and fast["rating"].null_count:
                self.count.repaired["no rating"] += fast["rating"].null_count
            yield fast
        else:
            yield from self._by_rows(rows)

    def _by_rows(self, rows: Rows) -> Iterator[pa.Table]:
        import pyarrow as pa

        schema = event_schema()
        values: list[tuple[Any, ...]] = []

        def flushed() -> pa.Table:
            columns = zip(*values, strict=True) if values else [[] for _ in schema]
            return pa.table(
                [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema
            )

        for where, row in rows:
            self.count.read += 1
            try:
                if isinstance(row, RowError):
                    raise row
                self.seen.update(row)
                self._note_unused(row)
                values.append(_values(row, where, self.form, self.count.repaired))
                self.count.end_row()
            except RowError as error:
                self.count.refuse(error, drop=self.drop)
            if len(values) == _STRICT_ROWS:
                yield flushed()
                values.clear()
        yield flushed()


def _values(row: Row, where: str, form: Format, repaired: Counter[str]) -> tuple[Any, ...]:
    columns = form.columns
    user_id = read_id(row, columns.user_id, where, repaired)
    item_id = read_id(row, columns.item_id, where, repaired)
    when = read_when(row, columns.when, where, None if columns.order else form.timestamp_unit, repaired)
    rating = read_rating(row, columns.rating, where, form.rating_range, repaired) if columns.rating else None
    words = (read_text(row, name, where, repaired) for name in (columns.summary, columns.review))
    return user_id, item_id, when, rating, *(without_surrogates(text, repaired) for text in words)


def _plain_times(path: Path, batch: pa.RecordBatch, form: Format) -> pa.RecordBatch:
    """Times of Parquet as integers of the declared unit.

    Raises:
        ValueError: They are finer than that: events would tie that do not.
    """
    import pyarrow as pa

    place = batch.schema.get_field_index(form.columns.when)
    if place < 0 or form.timestamp_unit == ISO or not pa.types.is_timestamp(batch.schema.field(place).type):
        return batch
    kind, unit = batch.schema.field(place).type, form.timestamp_unit
    try:
        ticks = batch.column(place).cast(pa.timestamp(unit, kind.tz)).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: column {form.columns.when!r} ({kind}) holds times that are no whole {unit!r}, and events would "
            "tie that do not; declare timestamp_unit 'ms' or 'us', or round them in the file"
        ) from error
    return batch.set_column(place, form.columns.when, ticks)


def _of_five(table: pa.Table, highest: float, repaired: Counter[str]) -> pa.Table:
    """Ratings of another scale as of five stars, which is how prompts and engines read them."""
    import pyarrow.compute as pc

    if highest == 5:
        return table
    place = table.schema.get_field_index("rating")
    stars = pc.round(pc.multiply(table["rating"], 5 / highest), 2).cast(table.schema.field(place).type)
    if len(stars) > stars.null_count:
        repaired["rating of another scale as of five stars"] += len(stars) - stars.null_count
    return table.set_column(place, table.schema.field(place), stars)


def _worded(table: pa.Table, columns: Columns, repaired: Counter[str]) -> pa.Table:
    """The table with one cleaned text for summary and review."""
    if not columns.review and not columns.summary:
        words = texts([""] * table.num_rows)
    else:
        summaries, reviews = table["summary"].to_pylist(), table["review"].to_pylist()
        joined = (_join(s or "", r or "") for s, r in zip(summaries, reviews, strict=True))
        words = texts([clean_text(text, repaired) for text in joined])
    return table.drop_columns(["summary", "review"]).append_column("review", words)


def _join(summary: str, text: str) -> str:
    summary = summary.strip()
    start = summary.rstrip(" .…")
    if not summary or _STARS_IN_WORDS.match(summary) or (start and text.startswith(start)):
        return text
    return f"{summary}{'' if summary[-1] in '.!?' else '.'} {text}"
