"""Readers of raw interactions and item metadata: every row is kept, or dropped for a named reason, or an error.

Nothing is inferred: ids are strings as they stand in the file, columns are declared, and a value that
does not fit is an error that names file, line, field and value. (Readers that infer types turn the id
``0001234567`` into a number and the title ``NA`` into nothing, without a word.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pulse_hf.data.item_text import build_item, clean_text
from pulse_hf.data.rows import RowError, read_rows
from pulse_hf.data.values import read_id, read_rating, read_text, read_when
from pulse_hf.schema import Interaction, Item

# Amazon fills an empty summary with the rating in words; these words are not the person's.
_STARS_IN_WORDS = re.compile(r"(one|two|three|four|five) stars?\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Which column of an interaction table holds what.

    Args:
        user_id: The person.
        item_id: What was chosen.
        timestamp: When; needed unless ``order`` is given.
        rating: Stars; ``None`` if there are none.
        review: The person's words; ``None`` if there are none.
        order: An integer that orders the events *within* a user, for data without times. It takes the
            place of ``timestamp``, and sequences then have no timestamps.
    """

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    rating: str | None = None
    review: str | None = None
    order: str | None = None

    def __post_init__(self) -> None:
        if self.timestamp is None and self.order is None:
            raise ValueError(
                "Columns has neither timestamp nor order; sequences need one. The order of rows in a file is not used."
            )

    @property
    def when(self) -> str:
        """The column that orders a user's events."""
        return self.order or self.timestamp or ""

    def declared(self) -> list[str]:
        """Every column that must occur in the file."""
        optional = [name for name in (self.rating, self.review) if name is not None]
        return [self.user_id, self.item_id, self.when, *optional]


@dataclass(frozen=True)
class ItemColumns:
    """Which column of an item table holds what.

    Args:
        item_id: The item.
        title: The name a person sees; may be empty in some rows.
        description: Words about it; the column may be absent.
        brand: Maker or publisher; the column may be absent.
        category: A name or a list of names from wide to narrow; the column may be absent.
    """

    item_id: str = "item_id"
    title: str = "title"
    description: str | None = "description"
    brand: str | None = None
    category: str | None = None


AMAZON_2018 = Columns("reviewerID", "asin", "unixReviewTime", rating="overall", review="reviewText")
AMAZON_2018_ITEMS = ItemColumns("asin", "title", "description", brand="brand", category="category")


@dataclass
class RowCount:
    """Where every row of a file went: ``read == kept + sum(dropped)``.

    Args:
        read: Rows in the file (blank lines and a header are not rows).
        kept: Rows that are in the result.
        dropped: Reason to number of rows.
        repaired: Kind of repair to number of values; a repaired row is kept.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

    def move(self, reason: str, rows: int) -> None:
        """Count rows as dropped that were kept until now."""
        if rows:
            self.kept -= rows
            self.dropped[reason] += rows

    def as_dict(self) -> dict[str, Any]:
        """The account as it stands in a report."""
        assert self.read == self.kept + self.dropped.total(), "a row is unaccounted for"
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "repaired": dict(sorted(self.repaired.items())),
        }


def read_interactions(
    path: Path,
    columns: Columns,
    *,
    rating_range: tuple[float, float] = (1.0, 5.0),
    timestamp_unit: str = "s",
    drop_bad_rows: bool = False,
) -> tuple[list[Interaction], RowCount]:
    """Read a table of interactions: JSON lines, CSV or TSV, gzip or plain.

    Args:
        path: The file; its name ends in .jsonl, .json, .csv or .tsv, or one of these with .gz.
        columns: Which column holds what.
        rating_range: Lowest and highest rating there can be.
        timestamp_unit: ``"s"``, ``"ms"`` or ``"us"``; not used with ``columns.order``.
        drop_bad_rows: Drop and count unreadable rows instead of raising.

    Returns:
        The interactions in the order of the file, and the account of all rows. ``Interaction.timestamp``
        is in ``timestamp_unit``.

    Raises:
        ValueError: A row or the file cannot be read; file, line, field and value are named.
    """

    def parse(row: Mapping[str, Any], where: str, repaired: Counter[str]) -> Interaction:
        words = read_text(row, columns.review, where)
        return _interaction(row, columns, where, repaired, words, rating_range, timestamp_unit)

    return _read(path, columns, parse, drop_bad_rows=drop_bad_rows)


def read_amazon_reviews(path: Path, *, drop_bad_rows: bool = False) -> tuple[list[Interaction], RowCount]:
    """Read a review file of the Amazon 2018 collection (one JSON object a line, gzip or plain).

    The review is the summary and the text; "Five Stars" and the like, which Amazon writes when the person
    wrote no summary, are left out.

    Args:
        path: For example ``Gift_Cards_5.json.gz``.
        drop_bad_rows: Drop and count unreadable rows instead of raising.

    Returns:
        The interactions in the order of the file, and the account of all rows.

    Raises:
        ValueError: A row or the file cannot be read; file, line, field and value are named.
    """

    def parse(row: Mapping[str, Any], where: str, repaired: Counter[str]) -> Interaction:
        words = _join_review(read_text(row, "summary", where), read_text(row, "reviewText", where))
        return _interaction(row, AMAZON_2018, where, repaired, words, (1.0, 5.0), "s")

    return _read(path, AMAZON_2018, parse, drop_bad_rows=drop_bad_rows)


def read_items(
    path: Path,
    columns: ItemColumns,
    wanted: Collection[str],
    *,
    item_text_words: int = 64,
    drop_bad_rows: bool = False,
) -> tuple[dict[str, Item], RowCount]:
    """Read item metadata; of several rows for one item the one with the longest title is kept.

    Args:
        path: JSON lines, CSV or TSV, gzip or plain.
        columns: Which column holds what (``AMAZON_2018_ITEMS`` for that collection).
        wanted: The catalogue: other items are counted and left out.
        item_text_words: Length of ``item_text`` in words.
        drop_bad_rows: Drop and count unreadable rows instead of raising.

    Returns:
        Item id to item for the wanted items that have a row, and the account of all rows.

    Raises:
        ValueError: A row or the file cannot be read; file, line, field and value are named.
    """
    count = RowCount()
    found: dict[str, tuple[tuple[bool, int, int, str, str], Item, str]] = {}
    for where, row in _accounted(path, [columns.item_id, columns.title], count, drop_bad_rows):
        try:
            item_id = read_id(row, columns.item_id, where, count.repaired)
            if item_id not in wanted:
                count.dropped["not in the catalogue"] += 1
                continue
            item, source = _item(item_id, row, columns, where, item_text_words, count.repaired)
        except RowError as error:
            _refuse(error, count, drop_bad_rows)
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


# -- rows to records -------------------------------------------------------------------------------


def _read(
    path: Path,
    columns: Columns,
    parse: Callable[[Mapping[str, Any], str, Counter[str]], Interaction],
    *,
    drop_bad_rows: bool,
) -> tuple[list[Interaction], RowCount]:
    count = RowCount()
    events: list[Interaction] = []
    for where, row in _accounted(path, columns.declared(), count, drop_bad_rows):
        try:
            events.append(parse(row, where, count.repaired))
        except RowError as error:
            _refuse(error, count, drop_bad_rows)
    count.kept = len(events)
    return events, count


def _accounted(
    path: Path, declared: list[str], count: RowCount, drop_bad_rows: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The readable rows of a file; all rows are counted, and declared columns that never occur are an error."""
    from tqdm import tqdm

    seen: set[str] = set()
    rows = read_rows(path, declared, count.repaired)
    for where, row in tqdm(rows, desc=path.name, unit=" rows", disable=None, leave=False):
        count.read += 1
        if isinstance(row, RowError):
            _refuse(row, count, drop_bad_rows)
            continue
        seen.update(row)
        yield where, row
    if not count.read:
        raise ValueError(f"{path}: no rows. Expected one interaction or item a line.")
    absent = [name for name in declared if name not in seen]
    if absent and seen:
        raise ValueError(
            f"{path}: declared column {', '.join(map(repr, absent))} is in no row; the rows have {sorted(seen)}. "
            "Declare the columns as the file names them."
        )


def _refuse(error: RowError, count: RowCount, drop_bad_rows: bool) -> None:
    if not drop_bad_rows:
        raise error
    count.dropped[error.reason] += 1


def _interaction(
    row: Mapping[str, Any],
    columns: Columns,
    where: str,
    repaired: Counter[str],
    words: str,
    rating_range: tuple[float, float],
    timestamp_unit: str,
) -> Interaction:
    user_id = read_id(row, columns.user_id, where, repaired)
    item_id = read_id(row, columns.item_id, where, repaired)
    unit = None if columns.order else timestamp_unit
    when = read_when(row, columns.when, where, unit, repaired)
    rating = read_rating(row, columns.rating, where, rating_range, repaired) if columns.rating else None
    return Interaction(user_id, item_id, when, rating, clean_text(words, repaired))


def _item(
    item_id: str, row: Mapping[str, Any], columns: ItemColumns, where: str, max_words: int, repaired: Counter[str]
) -> tuple[Item, str]:
    category = row.get(columns.category) if columns.category else None
    if not isinstance(category, list) or not all(isinstance(name, str) for name in category):
        category = [read_text(row, columns.category, where)]
    return build_item(
        item_id,
        read_text(row, columns.title, where),
        description=read_text(row, columns.description, where),
        brand=read_text(row, columns.brand, where),
        categories=category,
        max_words=max_words,
        repaired=repaired,
    )


def _join_review(summary: str, text: str) -> str:
    summary = summary.strip()
    start = summary.rstrip(" .…")
    if not summary or _STARS_IN_WORDS.match(summary) or (start and text.startswith(start)):
        return text
    return f"{summary}{'' if summary[-1] in '.!?' else '.'} {text}"
