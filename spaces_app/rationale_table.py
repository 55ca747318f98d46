"""The rationale dataset as something to leaf through: what was chosen, and the reason written for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputs import MAX_QUERY_CHARS, RefusedError, one_text, whole_number

from pulse_hf.artifacts import read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from pulse_hf.schema import Item, Sequence

PAGE_ROWS = 12
TEXT_COLUMNS = ("rationale", "reason", "text")
TITLE_COLUMNS = ("title", "item_title", "item_id")
MAX_ROWS = 200_000


def shown_name(place: str) -> str:
    """A repo id as it is, a folder by its last name: where it lies is nobody's business."""
    return Path(place).name if Path(place).is_absolute() else place


@dataclass(frozen=True)
class RationalePage:
    """Some rows of the dataset.

    Args:
        rows: ``(title, reason)``.
        page: From 1.
        pages: How many there are, at least 1.
        found: Rows that match in all.
    """

    rows: list[tuple[str, str]]
    page: int
    pages: int
    found: int


class RationaleTable:
    """Chosen titles and reasons, searched by their words.

    Args:
        rows: A table with columns ``title`` and ``text``.
        source: Where it comes from, in a few words.

    Example:
        >>> import pyarrow as pa
        >>> table = RationaleTable(pa.table({"title": ["Tray"], "text": ["They like cork."]}), "made here")
        >>> table.page("CORK").rows
        [('Tray', 'They like cork.')]
    """

    def __init__(self, rows: pa.Table, source: str) -> None:
        self._rows = rows
        self.source = source

    def __len__(self) -> int:
        return len(self._rows)

    def text(self, row: int) -> str:
        """One reason."""
        return str(self._rows["text"][row].as_py())

    def page(self, query: object = "", page: object = 1) -> RationalePage:
        """Rows that hold all words of the query in title or reason; a page beyond the last is the last.

        Raises:
            RefusedError: The query is no text or too long, or the page is no whole number of at least 1.
        """
        import pyarrow.compute as pc

        words = one_text(query, "The search", MAX_QUERY_CHARS).split()
        number = whole_number(page, "The page", 1, 10**9)
        found = self._rows
        for word in words:
            hits = [pc.match_substring(found[name], word, ignore_case=True) for name in ("title", "text")]
            found = found.filter(pc.or_(*hits))
        pages = max(1, math.ceil(len(found) / PAGE_ROWS))
        number = min(number, pages)
        rows = found.slice((number - 1) * PAGE_ROWS, PAGE_ROWS).to_pylist()
        return RationalePage([(row["title"], row["text"]) for row in rows], number, pages, len(found))


def rationales_of_run(run: Path, users: Mapping[str, Sequence], items: Mapping[str, Item]) -> RationaleTable:
    """The usable rationales of a run, in stored order: row ``n`` is the reason behind stored vector ``n``."""
    import pyarrow as pa

    kept = [row for row in read_table(run / "rationales" / "rationales.parquet").to_pylist() if row["status"] == "ok"]
    titles = [items[users[row["user_id"]].item_ids[row["position"]]].title for row in kept]
    table = pa.table(
        {"title": pa.array(titles, pa.string()), "text": pa.array([r["text"] for r in kept], pa.string())}
    )
    return RationaleTable(table, "the run's stage “rationales”")


def rationales_of_dataset(repo_id: str, items: Mapping[str, Item]) -> RationaleTable:
    """The usable rationales of a dataset repo or folder; only data is read, no code of the repo runs.

    Raises:
        RefusedError: The dataset has no column of reasons, or no reason in it.
    """
    import pyarrow as pa
    from datasets import load_dataset

    loaded: Any = load_dataset(repo_id, split="train")
    text = next((name for name in TEXT_COLUMNS if name in loaded.column_names), None)
    title = next((name for name in TITLE_COLUMNS if name in loaded.column_names), None)
    if text is None:
        raise RefusedError(f"The dataset has no column of reasons ({', '.join(TEXT_COLUMNS)}).")
    rows = loaded.select(range(min(len(loaded), MAX_ROWS))).to_dict()
    names = [str(one or "") for one in rows[title]] if title else [""] * len(rows[text])
    known = [items[name].title if name in items else name for name in names]
    reasons = [str(one or "").strip() for one in rows[text]]
    # A column of that name may mean anything in other people's datasets; in ours some row is "ok".
    statuses = rows["status"] if "ok" in rows.get("status", ()) else ["ok"] * len(reasons)
    usable = [bool(reason) and status == "ok" for reason, status in zip(reasons, statuses, strict=True)]
    if not any(usable):
        raise RefusedError("The dataset holds no usable reason.")
    table = pa.table({"title": pa.array(known, pa.string()), "text": pa.array(reasons, pa.string())})
    left_out = usable.count(False)
    note = f" ({left_out:,} without a usable reason left out)" if left_out else ""
    return RationaleTable(table.filter(pa.array(usable)), shown_name(repo_id) + note)
