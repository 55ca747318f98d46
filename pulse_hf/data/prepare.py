"""Stage ``prepare``: raw interactions and item metadata become sequences and a catalogue."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pulse_hf.artifacts import Fingerprint, build, sha256_of_file, sha256_of_text, table_writer, write_json
from pulse_hf.data.accounts import RowCount
from pulse_hf.data.arrays import texts
from pulse_hf.data.chunks import find_twins, same_content
from pulse_hf.data.columns import FORMATS, Columns, Format, ItemColumns
from pulse_hf.data.event_log import EventLog
from pulse_hf.data.event_tables import event_tables
from pulse_hf.data.filtering import Core, k_core
from pulse_hf.data.item_text import unnamed_item
from pulse_hf.data.items import read_items
from pulse_hf.data.sequences import FOLDER, OrderReport, SequenceCounts, catalogue_order, write_sequences
from pulse_hf.data.sources import local_file, local_files
from pulse_hf.data.splits import GlobalTime, People, split_times
from pulse_hf.data.values import TICKS_PER_SECOND
from pulse_hf.schema import Item

logger = logging.getLogger(__name__)

_UNNAMED_WARN, _UNNAMED_ERROR = 0.05, 0.50  # ours: shares of catalogue items without metadata


@dataclass(frozen=True)
class PrepareSettings:
    """What to read and which of it counts.

    Args:
        format: A published format (``"amazon-2014"``, ``"amazon-2018"``, ``"amazon-2023"``, ``"movielens-100k"``,
            ``"movielens-1m"``, ``"movielens-latest"``) or ``"table"`` (JSON lines, CSV, TSV or Parquet with declared
            columns).
        reviews: The file of interactions, or ``hf://datasets/OWNER/REPO[@REVISION]/FILE``; with ``*`` in its name all
            shards called so. (Paths are not part of the fingerprint; the files' sha256 are.)
        metadata: The file of items; without it every item is called "Item <id>".
        columns: Columns of ``reviews``, for ``"table"``.
        item_columns: Columns of ``metadata``, for ``"table"``.
        timestamp_unit: ``"s"``, ``"ms"``, ``"us"`` or ``"iso"`` (ISO 8601 text), for ``"table"``.
        rating_range: Lowest and highest rating, for ``"table"``. Of another highest than 5 they are kept as of five
            stars: 8 of 10 as 4, counted.
        encoding: How text files are encoded, such as ``"latin-1"``; ``None`` for the format's own (mostly UTF-8).
        drop_bad_rows: Drop and count unreadable rows; otherwise the first one is an error.
        salvage: Of a gzip file that was cut or damaged take the whole lines before the damage; otherwise it is an
            error.
        max_repair_rate: Share of a file's rows that may be dropped as unreadable or mended as damaged (1 %, ours);
            more is an error. It decides no content, so it is not part of the fingerprint.
        deduplicate: Keep only the first event of each user and item (paper §5.1; which one is ours).
        min_user_events: k-core for users (5, as the Amazon "5-core" files); 0 or 1 disables it.
        min_item_events: k-core for items (5, as above); 0 or 1 disables it.
        core_rounds: Rounds of counting and dropping; ``None`` until nothing falls, 1 for a single counting pass.
        split: ``"leave-one-out"`` (each user's last event, paper §5.1, and the one before it to choose by, ours),
            ``"global-time"``: periods of the calendar, so that no fit sees what happened later than what it predicts,
            or ``"people"``: the last events of people of whom no fit sees anything (strong generalisation).
        validation_share: For ``"global-time"``: share of all events in the validation period; for ``"people"``: share
            of the people (ours).
        test_share: For ``"global-time"`` and ``"people"``: the same of testing (ours).
        strict_time: Leave-one-out: who made one of the last two choices at the same time as another has no targets,
            since nobody knows which came first; all of that user's events train. Otherwise such ties are broken by
            a stable hash and counted.
        expected: Counts the result must have (``users``, ``items``, ``events``); another count is an error.
        item_text_words: Length of an item's line in words (ours).

    Raises:
        ValueError: A value is outside its range.
    """

    format: Literal[
        "table", "amazon-2014", "amazon-2018", "amazon-2023", "movielens-100k", "movielens-1m", "movielens-latest"
    ]
    reviews: str
    metadata: str | None = None
    columns: Columns = field(default_factory=Columns)
    item_columns: ItemColumns = field(default_factory=ItemColumns)
    timestamp_unit: Literal["s", "ms", "us", "iso"] = "s"
    rating_range: tuple[float, float] = (1.0, 5.0)
    encoding: str | None = None
    drop_bad_rows: bool = False
    salvage: bool = False
    max_repair_rate: float = 0.01
    deduplicate: bool = True
    min_user_events: int = 5
    min_item_events: int = 5
    core_rounds: int | None = None
    split: Literal["leave-one-out", "global-time", "people"] = "leave-one-out"
    validation_share: float = 0.1
    test_share: float = 0.1
    strict_time: bool = False
    expected: Mapping[str, int] = field(default_factory=dict)
    item_text_words: int = 64

    def __post_init__(self) -> None:
        # A settings file gives mappings and lists where the class has records and tuples.
        if isinstance(self.columns, Mapping):
            object.__setattr__(self, "columns", Columns(**self.columns))
        if isinstance(self.item_columns, Mapping):
            object.__setattr__(self, "item_columns", ItemColumns(**self.item_columns))
        object.__setattr__(self, "rating_range", tuple(self.rating_range))
        if len(self.rating_range) != 2 or not self.rating_range[0] < self.rating_range[1] or self.rating_range[1] <= 0:
            raise ValueError(
                f"rating_range is {self.rating_range}, expected the lowest and a higher, positive highest."
            )
        if self.format not in ("table", *FORMATS):
            raise ValueError(f"format is {self.format!r}, expected one of {['table', *FORMATS]}.")
        if self.timestamp_unit not in TICKS_PER_SECOND:
            raise ValueError(f"timestamp_unit is {self.timestamp_unit!r}, expected one of {list(TICKS_PER_SECOND)}.")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        self._check_filters()
        self._check_split()
        unknown = self.expected.keys() - {"users", "items", "events"}
        if unknown:
            raise ValueError(f"expected has {sorted(unknown)}; known counts are users, items, events.")
        if self.item_text_words < 1:
            raise ValueError(f"item_text_words is {self.item_text_words}, expected at least 1.")

    def _check_filters(self) -> None:
        if min(self.min_user_events, self.min_item_events) < 0:
            raise ValueError("min_user_events and min_item_events must be 0 or more.")
        if self.core_rounds is not None and self.core_rounds < 1:
            raise ValueError(f"core_rounds is {self.core_rounds}, expected at least 1, or None for all.")
        if not 0 <= self.max_repair_rate <= 1:
            raise ValueError(f"max_repair_rate is {self.max_repair_rate}, expected a share from 0 to 1.")

    def _check_split(self) -> None:
        if self.split not in ("leave-one-out", "global-time", "people"):
            raise ValueError(f"split is {self.split!r}, expected 'leave-one-out', 'global-time' or 'people'.")
        if self.split == "global-time" and not self.timed:
            raise ValueError(
                "split is 'global-time', but the data has an order and no times. Declare columns.timestamp, or split "
                "otherwise."
            )
        if self.strict_time and (self.split != "leave-one-out" or not self.timed):
            raise ValueError(
                "strict_time asks which of a user's last choices came first: it needs times and leave-one-out."
            )
        if min(self.validation_share, self.test_share) <= 0 or self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share must be above 0 and together below 1.")

    @property
    def form(self) -> Format:
        """Which column holds what, declared or known."""
        if self.format != "table":
            known = FORMATS[self.format]
        else:
            known = Format(self.columns, self.item_columns, self.timestamp_unit, self.rating_range)
        return known if self.encoding is None else replace(known, encoding=self.encoding)

    @property
    def timed(self) -> bool:
        """Whether the data has times, not only an order."""
        return self.form.columns.order is None


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
    shards = local_files(settings.reviews)
    if len(shards) == 1:
        settings = replace(settings, reviews=str(shards[0]))
    if settings.metadata:
        settings = replace(settings, metadata=str(local_file(settings.metadata)))
    inputs = {"reviews": shards, **({"metadata": [Path(settings.metadata)]} if settings.metadata else {})}
    _expect_other_shards(settings.reviews, shards)
    _expect_two_files(settings, shards)
    before = {path: _state_of(path) for paths in inputs.values() for path in paths}
    hashes = {name: _sha256_of(paths) for name, paths in inputs.items()}
    # These are named only where they are used: artefacts made before there were such settings stay what they are.
    unused = {name for name in ("salvage", "encoding", "strict_time") if not getattr(settings, name)}
    unnamed = {"reviews", "metadata", "max_repair_rate", *unused}
    facts = {key: value for key, value in asdict(settings).items() if key not in unnamed}
    fingerprint = Fingerprint(stage="prepare", settings=facts, seed=seed, parents=hashes)

    def make(work: Path) -> dict[str, Any]:
        report = _prepare(work, settings, shards)
        changed = [str(path) for path, state in before.items() if _state_of(path) != state]
        if changed:
            raise ValueError(f"{', '.join(changed)}: changed while it was read. Run again when nobody writes to it.")
        write_json(work / "report.json", report)
        return {**report, "inputs_sha256": hashes}

    try:
        build(folder, fingerprint, make, force=force)
    except ValueError:
        # Nothing here resumes; without this a user who corrects a file would be told to pass --force.
        shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        raise
    return folder


def _check_encoding(name: str) -> None:
    """Lines are told apart by their bytes, so an encoding must write plain letters and line feeds as ASCII does."""
    plain = "a,1\n"
    try:
        fits = plain.encode(name) == plain.encode()
    except LookupError:
        fits = False
    if not fits:
        raise ValueError(
            f"encoding is {name!r}, expected one that contains ASCII, such as 'utf-8', 'latin-1', 'cp1252'."
        )


def _expect_other_shards(name: str, shards: Sequence[Path]) -> None:
    """Refuse a pattern that takes in one file twice, such as ``log.jsonl`` and ``log.jsonl.gz``."""
    twins = find_twins(shards) if len(shards) > 1 else None
    if twins:
        raise ValueError(
            f"{twins[0]} and {twins[1]} have the same content, and each of their rows would count twice. Remove one, "
            f"or give a pattern that takes in one of them; prepare.reviews is {name}."
        )


def _expect_two_files(settings: PrepareSettings, shards: Sequence[Path]) -> None:
    """Refuse one file in two roles: a review's headline would become its item's title. A table may well be both."""
    if settings.format == "table" or settings.metadata is None:
        return
    if any(same_content(shard, Path(settings.metadata)) for shard in shards):
        raise ValueError(
            f"{settings.reviews} and {settings.metadata} have the same content, expected reviews and metadata as "
            f"{settings.format} publishes them. Name the file of items, or leave metadata out."
        )


def _sha256_of(paths: Sequence[Path]) -> str:
    """The sha256 of a file, or of those of its shards."""
    hashes = [sha256_of_file(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else sha256_of_text(hashes)


def _state_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _prepare(work: Path, settings: PrepareSettings, shards: Sequence[Path]) -> dict[str, Any]:
    count = RowCount()
    log = EventLog(work / "spool")
    how = {"drop_bad_rows": settings.drop_bad_rows, "salvage": settings.salvage}
    for shard in shards:
        for table in event_tables(shard, settings.form, count, **how):
            log.append(table)
    count.check_damage(settings.reviews, settings.max_repair_rate)
    logger.info("%s: %d rows, %d readable", settings.reviews, count.read, count.kept)
    count.move("repeat of a user and item", log.sort(deduplicate=settings.deduplicate))
    if log.exact_repeats and not settings.deduplicate:
        count.repaired["exact repeat of a row, kept"] += log.exact_repeats
    core = _core(log, settings, count)
    ticks = TICKS_PER_SECOND[settings.form.timestamp_unit] if settings.timed else 1
    split: GlobalTime | People | None = None
    shares = settings.validation_share, settings.test_share
    if settings.split == "global-time":
        split = split_times(log, core, *shares, 86_400 * ticks)
    elif settings.split == "people":
        split = People(*shares)
    path = work / "sequences.parquet"
    counts, order = write_sequences(
        path,
        log,
        core,
        timed=settings.timed,
        ticks_per_second=ticks,
        split=split,
        strict_time=settings.strict_time,
    )
    count.move("after the user's test target", core.events - counts.events)
    _warn_of_no_targets(settings, counts)
    shutil.rmtree(work / "spool")
    item_ids = catalogue_order(name for name, kept in zip(log.item_ids, core.items, strict=True) if kept)
    items, metadata = _catalogue(settings, item_ids)
    with table_writer(work / "items.parquet", "items") as write:
        write([texts([getattr(item, name) for item in items]) for name in ("item_id", "title", "item_text")])
    report = _report(counts, items, order, count, core)
    report["metadata"] = metadata
    report["split"] = {"by": settings.split, **(asdict(split) if split else {})}
    logger.info("kept %(users)d users, %(items)d items, %(events)d events", report["result"])
    if count.dropped:
        logger.info(
            "dropped rows: %s", ", ".join(f"{reason} {rows:,}" for reason, rows in count.dropped.most_common())
        )
    _check_expected(settings, report["result"])
    return report


def _warn_of_no_targets(settings: PrepareSettings, counts: SequenceCounts) -> None:
    """Tell of data on which nothing can be tested, before other stages find that out one by one."""
    if not counts.users_with_test:
        logger.warning(
            "%s: none of the %d users has a test target (by %s; leave-one-out needs three events of a person)",
            settings.reviews,
            counts.users,
            settings.split,
        )


def _core(log: EventLog, settings: PrepareSettings, count: RowCount) -> Core:
    core = k_core(log, settings.min_user_events, settings.min_item_events, settings.core_rounds)
    for reason, rows in core.dropped.items():
        count.move(reason, rows)
    if not core.events:
        rounds = "; ".join(f"{r['users']} users, {r['items']} items, {r['events']} events" for r in core.rounds)
        raise ValueError(
            f"{settings.reviews}: no events are left (round by round: {rounds}). Lower min_user_events "
            f"({settings.min_user_events}) or min_item_events ({settings.min_item_events})."
        )
    return core


def _check_expected(settings: PrepareSettings, result: Mapping[str, int]) -> None:
    other = [f"{result[name]} {name}, expected {n}" for name, n in settings.expected.items() if result[name] != n]
    if other:
        raise ValueError(
            f"{settings.reviews}: found {'; '.join(other)}. The file is another one than the recipe was made for, or "
            "the settings are; set prepare.expected to {} to go on with it."
        )


def _catalogue(settings: PrepareSettings, item_ids: list[str]) -> tuple[list[Item], dict[str, Any]]:
    if settings.metadata is None:
        logger.warning("No metadata: all %d items are called 'Item <id>'; texts tell models nothing.", len(item_ids))
        return [unnamed_item(item_id) for item_id in item_ids], {"items_without_metadata": len(item_ids)}
    known, count = read_items(
        Path(settings.metadata),
        settings.form.item_columns,
        set(item_ids),
        layout=settings.form.item_layout,
        item_text_words=settings.item_text_words,
        drop_bad_rows=settings.drop_bad_rows,
        salvage=settings.salvage,
        encoding=settings.form.encoding,
    )
    count.check_damage(settings.metadata, settings.max_repair_rate)
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
    counts: SequenceCounts, items: list[Item], order: OrderReport, count: RowCount, core: Core
) -> dict[str, Any]:
    return {
        "reviews": count.as_dict(),
        "core_rounds": core.rounds,
        "order": {**asdict(order), "tied_share": round(order.tied_share, 6)},
        "result": {**asdict(counts), "distinct_titles": len({item.title for item in items})},
    }
