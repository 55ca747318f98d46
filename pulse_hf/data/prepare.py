"""Stage ``prepare``: raw interactions and item metadata become sequences and a catalogue."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pulse_hf.artifacts import Fingerprint, build, sha256_of_file, write_json, write_table
from pulse_hf.data.filtering import deduplicate, k_core
from pulse_hf.data.item_text import unnamed_item
from pulse_hf.data.readers import (
    AMAZON_2018_ITEMS,
    Columns,
    ItemColumns,
    RowCount,
    read_amazon_reviews,
    read_interactions,
    read_items,
)
from pulse_hf.data.sequences import FOLDER, OrderReport, build_sequences, catalogue_order
from pulse_hf.data.values import TICKS_PER_SECOND
from pulse_hf.schema import Interaction, Item, Sequence

logger = logging.getLogger(__name__)

_UNNAMED_WARN, _UNNAMED_ERROR = 0.05, 0.50  # ours: shares of catalogue items without metadata


@dataclass(frozen=True)
class PrepareSettings:
    """What to read and which of it counts.

    Args:
        format: ``"amazon-2018"`` (reviews and metadata of that collection) or ``"table"`` (JSON lines, CSV or TSV
            with declared columns).
        reviews: The file of interactions. (Paths are not part of the fingerprint; the files' sha256 are.)
        metadata: The file of items; without it every item is called "Item <id>".
        columns: Columns of ``reviews``, for ``"table"``.
        item_columns: Columns of ``metadata``, for ``"table"``.
        timestamp_unit: ``"s"``, ``"ms"`` or ``"us"``, for ``"table"``.
        rating_range: Lowest and highest rating, for ``"table"``.
        drop_bad_rows: Drop and count unreadable rows; otherwise the first one is an error.
        deduplicate: Keep only the first event of each user and item (ours; the paper does not say).
        min_user_events: k-core for users (5, as the Amazon "5-core" files); 0 or 1 disables it.
        min_item_events: k-core for items (5, as above); 0 or 1 disables it.
        item_text_words: Length of an item's line in words (ours).

    Raises:
        ValueError: A value is outside its range.
    """

    format: Literal["amazon-2018", "table"]
    reviews: str
    metadata: str | None = None
    columns: Columns = field(default_factory=Columns)
    item_columns: ItemColumns = field(default_factory=ItemColumns)
    timestamp_unit: Literal["s", "ms", "us"] = "s"
    rating_range: tuple[float, float] = (1.0, 5.0)
    drop_bad_rows: bool = False
    deduplicate: bool = True
    min_user_events: int = 5
    min_item_events: int = 5
    item_text_words: int = 64

    def __post_init__(self) -> None:
        # A settings file gives mappings and lists where the class has records and tuples.
        if isinstance(self.columns, Mapping):
            object.__setattr__(self, "columns", Columns(**self.columns))
        if isinstance(self.item_columns, Mapping):
            object.__setattr__(self, "item_columns", ItemColumns(**self.item_columns))
        object.__setattr__(self, "rating_range", tuple(self.rating_range))
        if self.format not in ("amazon-2018", "table"):
            raise ValueError(f"format is {self.format!r}, expected 'amazon-2018' or 'table'.")
        if self.timestamp_unit not in TICKS_PER_SECOND:
            raise ValueError(f"timestamp_unit is {self.timestamp_unit!r}, expected one of {list(TICKS_PER_SECOND)}.")
        if min(self.min_user_events, self.min_item_events) < 0:
            raise ValueError("min_user_events and min_item_events must be 0 or more.")
        if self.item_text_words < 1:
            raise ValueError(f"item_text_words is {self.item_text_words}, expected at least 1.")

    @property
    def timed(self) -> bool:
        """Whether the data has times, not only an order."""
        return self.format == "amazon-2018" or self.columns.order is None


def prepare(run: Path, settings: PrepareSettings, *, seed: int, force: bool = False) -> Path:
    """Read, clean, de-duplicate, filter and order a shop's interactions.

    The artefact ``sequences/`` holds ``sequences.parquet`` (one row per user), ``items.parquet`` (the
    catalogue; its order gives ``item_index``) and ``report.json`` (where every row went). Its bytes depend
    on the rows of the input, not on their order.

    Args:
        run: The run folder.
        settings: What to read and what counts.
        seed: The run's seed; recorded only, since nothing here is random.
        force: Build anew although other settings or inputs made the artefact that is there.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: The input cannot be used; file, line and field are named.
        ArtifactError: Other settings or inputs made the artefact that is there.
    """
    folder = run / FOLDER
    inputs = {"reviews": settings.reviews, **({"metadata": settings.metadata} if settings.metadata else {})}
    for name, path in inputs.items():
        if not Path(path).is_file():
            raise ValueError(f"{name}: {path} is not a file. Check the path (relative to the current folder).")
    hashes = {name: sha256_of_file(Path(path)) for name, path in inputs.items()}
    facts = {key: value for key, value in asdict(settings).items() if key not in ("reviews", "metadata")}
    fingerprint = Fingerprint(stage="prepare", settings=facts, seed=seed, parents=hashes)

    def make(work: Path) -> dict[str, Any]:
        sequences, items, report = _prepared(settings)
        write_table(work / "sequences.parquet", "sequences", sequences)
        write_table(work / "items.parquet", "items", items)
        write_json(work / "report.json", report)
        return {**report, "inputs_sha256": hashes}

    try:
        build(folder, fingerprint, make, force=force)
    except ValueError:
        # Nothing here resumes; without this a user who corrects a file would be told to pass --force.
        shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        raise
    return folder


def _prepared(settings: PrepareSettings) -> tuple[list[Sequence], list[Item], dict[str, Any]]:
    events, count = _read_events(settings)
    logger.info("%s: %d rows, %d readable", settings.reviews, count.read, count.kept)
    if settings.deduplicate:
        events, repeats = deduplicate(events)
        count.move("repeat of a user and item", repeats)
    core = k_core(events, settings.min_user_events, settings.min_item_events)
    for reason, rows in core.dropped.items():
        count.move(reason, rows)
    if not core.events:
        rounds = "; ".join(f"{r['users']} users, {r['items']} items, {r['events']} events" for r in core.rounds)
        raise ValueError(
            f"{settings.reviews}: no events are left (round by round: {rounds}). Lower min_user_events "
            f"({settings.min_user_events}) or min_item_events ({settings.min_item_events})."
        )
    ticks = TICKS_PER_SECOND[settings.timestamp_unit]
    sequences, order = build_sequences(core.events, timed=settings.timed, ticks_per_second=ticks)
    items, metadata = _catalogue(settings, catalogue_order(event.item_id for event in core.events))
    report = _report(sequences, items, order, count, core.rounds)
    report["metadata"] = metadata
    logger.info("kept %(users)d users, %(items)d items, %(events)d events", report["result"])
    return sequences, items, report


def _read_events(settings: PrepareSettings) -> tuple[list[Interaction], RowCount]:
    path = Path(settings.reviews)
    if settings.format == "amazon-2018":
        return read_amazon_reviews(path, drop_bad_rows=settings.drop_bad_rows)
    return read_interactions(
        path,
        settings.columns,
        rating_range=settings.rating_range,
        timestamp_unit=settings.timestamp_unit,
        drop_bad_rows=settings.drop_bad_rows,
    )


def _catalogue(settings: PrepareSettings, item_ids: list[str]) -> tuple[list[Item], dict[str, Any]]:
    if settings.metadata is None:
        logger.warning("No metadata: all %d items are called 'Item <id>'; texts tell models nothing.", len(item_ids))
        return [unnamed_item(item_id) for item_id in item_ids], {"items_without_metadata": len(item_ids)}
    known, count = read_items(
        Path(settings.metadata),
        AMAZON_2018_ITEMS if settings.format == "amazon-2018" else settings.item_columns,
        set(item_ids),
        item_text_words=settings.item_text_words,
        drop_bad_rows=settings.drop_bad_rows,
    )
    unnamed = [item_id for item_id in item_ids if item_id not in known]
    share = len(unnamed) / len(item_ids)
    if share > _UNNAMED_WARN:
        message = (
            f"{settings.metadata}: {len(unnamed)} of {len(item_ids)} items have no row (for example "
            f"{unnamed[0]!r}). Check that reviews and metadata name items by the same id"
        )
        if share > _UNNAMED_ERROR:
            raise ValueError(message + ", or leave metadata out.")
        logger.warning("%s; these are called 'Item <id>'.", message)
    items = [known.get(item_id) or unnamed_item(item_id) for item_id in item_ids]
    return items, {**count.as_dict(), "items_without_metadata": len(unnamed)}


def _report(
    sequences: list[Sequence], items: list[Item], order: OrderReport, count: RowCount, rounds: list[dict[str, int]]
) -> dict[str, Any]:
    return {
        "reviews": count.as_dict(),
        "core_rounds": rounds,
        "order": {**asdict(order), "tied_share": round(order.tied_share, 6)},
        "result": {
            "users": len(sequences),
            "items": len(items),
            "events": sum(map(len, sequences)),
            "users_with_test": sum(len(sequence) >= 3 for sequence in sequences),
            "events_with_review": sum(bool(review) for sequence in sequences for review in sequence.reviews),
            "distinct_titles": len({item.title for item in items}),
        },
    }
