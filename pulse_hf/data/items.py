"""The reader of item metadata: every row is kept, or dropped for a named reason, or an error.

Nothing is inferred: ids are strings as they stand in the file, and columns are declared. (Readers that infer
types turn the id ``0001234567`` into a number and the title ``NA`` into nothing, without a word.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pulse_hf.data.accounts import RowCount
from pulse_hf.data.columns import ItemColumns
from pulse_hf.data.item_text import build_item
from pulse_hf.data.rows import Layout, Row, RowError, read_rows
from pulse_hf.data.values import read_id, read_text
from pulse_hf.schema import Item


def read_items(
    path: Path,
    columns: ItemColumns,
    wanted: Collection[str],
    *,
    layout: Layout | None = None,
    item_text_words: int = 64,
    drop_bad_rows: bool = False,
    salvage: bool = False,
    encoding: str = "utf-8",
) -> tuple[dict[str, Item], RowCount]:
    """Read item metadata; of several rows for one item the one with the longest title is kept.

    Args:
        path: JSON lines, CSV, TSV (each also gzip), Parquet, or what ``layout`` declares.
        columns: Which column holds what.
        wanted: The catalogue: other items are counted and left out.
        layout: How the file is written, if its name does not say so.
        item_text_words: Length of ``item_text`` in words.
        drop_bad_rows: Drop and count unreadable rows instead of raising.
        salvage: Of a damaged gzip file take the whole lines before the damage.
        encoding: How the bytes of a text file are read.

    Returns:
        Item id to item for the wanted items that have a row, and the account of all rows.

    Raises:
        ValueError: A row or the file cannot be read; file, line, field and value are named.
    """
    count = RowCount()
    found: dict[str, tuple[tuple[bool, int, int, str, str], Item, str]] = {}
    how = {"encoding": encoding, "salvage": salvage}
    for where, row in _accounted(path, columns, layout, count, drop_bad_rows, **how):
        try:
            item_id = read_id(row, columns.item_id, where, count.repaired)
            if item_id not in wanted:
                count.dropped["not in the catalogue"] += 1
                continue
            item, source = _item(item_id, row, columns, where, item_text_words, count.repaired)
            count.end_row()
        except RowError as error:
            count.refuse(error, drop=drop_bad_rows)
            continue
        rank = (source == "title", len(item.title), len(item.item_text), item.title, item.item_text)
        if item_id in found:
            count.dropped["another row for the same item"] += 1
        if item_id not in found or rank > found[item_id][0]:
            found[item_id] = (rank, item, source)
    count.kept = len(found)
    sources = Counter(source for _, _, source in found.values())
    count.repaired.update({"title from brand, category or description": sources["metadata"]})
    count.repaired.update({"title from the id": sources["id"]})
    return {item_id: item for item_id, (_, item, _) in found.items()}, count


def _accounted(
    path: Path, columns: ItemColumns, layout: Layout | None, count: RowCount, drop_bad_rows: bool, **how: Any
) -> Iterator[tuple[str, Row]]:
    """The readable rows of a file; all rows are counted, and declared columns that never occur are an error."""
    from tqdm import tqdm

    seen: set[str] = set()
    declared = [columns.item_id, columns.title]
    told: set[str] = set()
    rows = read_rows(path, declared, count.repaired, layout, wanted=columns.known(), tell=told.update, **how)
    for where, row in tqdm(rows, desc=path.name, unit=" rows", disable=None, leave=False):
        count.read += 1
        if isinstance(row, RowError):
            count.refuse(row, drop=drop_bad_rows)
            continue
        seen.update(row)
        yield where, row
    if not count.read:
        raise ValueError(f"{path}: no rows. Expected one item a line. Copy the file again, or leave metadata out.")
    absent = [name for name in declared if name not in seen]
    if absent and seen:
        raise ValueError(
            f"{path}: declared column {', '.join(map(repr, absent))} is in no row; the rows have {sorted(seen)}. "
            "Declare the columns as the file names them."
        )
    if layout is None:
        count.note_unused(path, (seen | told) - set(columns.known()))


def _item(
    item_id: str, row: Row, columns: ItemColumns, where: str, max_words: int, repaired: Counter[str]
) -> tuple[Item, str]:
    return build_item(
        item_id,
        read_text(row, columns.title, where, repaired),
        description=read_text(row, columns.description, where, repaired),
        brand=read_text(row, columns.brand, where, repaired),
        categories=_categories(row, columns, where, repaired),
        max_words=max_words,
        repaired=repaired,
    )


def _categories(row: Row, columns: ItemColumns, where: str, repaired: Counter[str]) -> list[str]:
    found = row.get(columns.category) if columns.category else None
    names = [name for name in columns.category_flags if str(row.get(name)) == "1"]
    if isinstance(found, list) and found and all(isinstance(path, list) for path in found):
        found = [name for path in found for name in path]  # Amazon 2014: several paths
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return names + found
    text = read_text(row, columns.category, where, repaired)
    return names + (text.split(columns.category_separator) if columns.category_separator else [text])
