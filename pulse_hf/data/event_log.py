"""All interactions of a shop, spooled to disk: memory follows its users and items, not its rows.

Rows come in any order and leave in *parts*: whole users, in the order of a stable hash of their id, each user's
events in order. A part fits into memory; what one part holds depends on the events alone, not on the order of the
file or the size of the chunks it was read in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.data.arrays import column_of, numbers
from pulse_hf.schema import hash_order, stable_hash

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

PART_BYTES = 4_000_000  # ours: about what one part holds; it takes some times as much while it is sorted
_MAX_PARTS = 400  # open files at once, below the usual limit of 1,024
_EVENT_BYTES = 32  # one event without its review


def order_hash(user_id: str, item_id: str, timestamp: int, review: str, rating: float | None) -> int:
    """What orders events of one user at one time: a hash of the event itself.

    Never the item id or the place in the file: in shops that store days, half of the events tie, ids are
    given out over time, and an order by id then tells a model what comes next (LRURec's issue 1: about
    20 % NDCG for nothing).
    """
    return stable_hash("order", user_id, item_id, timestamp, review, str(rating))


class EventLog:
    """Interactions on their way from a file to sequences.

    Args:
        folder: Where the spool lies; the caller removes it.
        part_bytes: About how much of the log is held at a time.

    Attributes:
        exact_repeats: Events that are equal to another one in everything; known once the log is sorted.

    Example:
        >>> import tempfile, pyarrow as pa
        >>> log = EventLog(Path(tempfile.mkdtemp()))
        >>> rows = {"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [20, 10]}
        >>> log.append(pa.table({**rows, "rating": pa.nulls(2, pa.float64()), "review": ["", ""]}))
        >>> log.sort(deduplicate=True)
        0
        >>> [log.item_ids[item] for part in log.parts() for item in part["item"].to_pylist()]
        ['a', 'b']
    """

    def __init__(self, folder: Path, part_bytes: int = PART_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.part_bytes = folder, part_bytes
        self.events = self.exact_repeats = 0
        self.user_ids: list[str] = []
        self.item_ids: list[str] = []
        self._bytes = 0
        self._user_codes: dict[str, int] = {}
        self._item_codes: dict[str, int] = {}
        self._spool: Any = None
        self._parts: list[Path] = []

    def append(self, table: pa.Table) -> None:
        """Add interactions (columns of :func:`~pulse_hf.data.event_tables.event_tables`)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        coded = pa.table(
            {
                "user": _codes(table["user_id"], self._user_codes),
                "item": _codes(table["item_id"], self._item_codes),
                "timestamp": table["timestamp"],
                "rating": table["rating"],
                "review": table["review"].cast(pa.large_string()),
            }
        )
        if self._spool is None:
            self._spool = pa.ipc.new_stream(str(self.folder / "log.arrow"), coded.schema)
        self._spool.write_table(coded)
        self.events += coded.num_rows
        self._bytes += coded.num_rows * _EVENT_BYTES + (pc.sum(pc.binary_length(coded["review"])).as_py() or 0)

    def sort(self, *, deduplicate: bool) -> int:
        """Put all events in order; after this :meth:`parts` can be read and nothing more be added.

        Args:
            deduplicate: Keep only the first event of each user and item. The first, because a repeat tells a model
                that it may recommend what the person already has (with repeats, 17 % of Luxury Beauty's targets
                are in the history).

        Returns:
            The number of repeats that were dropped.
        """
        import numpy as np

        names = list(self._user_codes)
        places = hash_order("user", names)
        self.user_ids = [names[code] for code in places]
        self.item_ids = list(self._item_codes)
        rank = np.empty(len(places), dtype=np.int32)
        rank[places] = np.arange(len(places), dtype=np.int32)
        self._user_codes, self._item_codes = {}, {}
        scattered = self._scatter(rank)
        kept = 0
        for number, path in enumerate(scattered):
            part = self._ordered(_read(path), deduplicate)
            kept += part.num_rows
            self._parts.append(self.folder / f"part-{number:05d}.arrow")
            _write(self._parts[-1], part)
            path.unlink()
        return self.events - kept

    def _scatter(self, rank: NDArray[np.int32]) -> list[Path]:
        """Spread the log over files that hold whole users."""
        import numpy as np
        import pyarrow as pa

        if self._spool is None:
            return []
        self._spool.close()
        log = self.folder / "log.arrow"
        number = min(_MAX_PARTS, 1 + self._bytes // self.part_bytes)
        paths = [self.folder / f"users-{part:05d}.arrow" for part in range(number)]
        writers: list[Any] = []
        with pa.OSFile(str(log)) as file:
            stream = pa.ipc.open_stream(file)
            writers = [pa.ipc.new_stream(str(path), stream.schema) for path in paths]
            for batch in stream:
                users = rank[numbers(batch.column("user"))]
                part_of = users.astype(np.int64) * number // len(rank)
                order = np.argsort(part_of, kind="stable")
                moved = batch.set_column(0, "user", column_of(users)).take(column_of(order))
                bounds = np.searchsorted(part_of[order], np.arange(number + 1))
                for part in np.flatnonzero(np.diff(bounds)):
                    writers[part].write_batch(moved.slice(bounds[part], bounds[part + 1] - bounds[part]))
        for writer in writers:
            writer.close()
        log.unlink()
        return paths

    def _ordered(self, part: pa.Table, deduplicate: bool) -> pa.Table:
        import numpy as np

        users, items, times = (numbers(part[name]) for name in ("user", "item", "timestamp"))
        order = np.lexsort((times, users))
        same = (np.diff(users[order]) == 0) & (np.diff(times[order]) == 0)
        tied = order[np.concatenate([same, [False]]) | np.concatenate([[False], same])] if len(order) else order
        if len(tied):
            keys = np.zeros(len(order), dtype=np.uint64)
            rows = part.take(column_of(tied)).to_pylist()
            keys[tied] = [
                order_hash(
                    self.user_ids[row["user"]],
                    self.item_ids[row["item"]],
                    row["timestamp"],
                    row["review"],
                    row["rating"],
                )
                for row in rows
            ]
            order = np.lexsort((keys, times, users))
            # Within a user and time, equal hashes are equal events.
            equal = [np.diff(values[order]) == 0 for values in (users, times, keys)]
            self.exact_repeats += int(np.all(equal, axis=0).sum())
        if deduplicate:
            pairs = users[order].astype(np.int64) * len(self.item_ids) + items[order]
            order = order[np.sort(np.unique(pairs, return_index=True)[1])]
        return part.take(column_of(order))

    def parts(
        self, columns: tuple[str, ...] = ("user", "item", "timestamp", "rating", "review")
    ) -> Iterator[pa.Table]:
        """The ordered events, whole users at a time.

        Args:
            columns: ``user`` (index of ``user_ids``), ``item`` (index of ``item_ids``), ``timestamp``, ``rating``,
                ``review``; only the named ones are read.
        """
        for path in self._parts:
            yield _read(path, columns)


def _codes(ids: pa.ChunkedArray, known: dict[str, int]) -> pa.Array:
    """The ids as numbers, in the order in which they were first seen."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_encode()
    encoded = ids.chunk(0) if ids.num_chunks == 1 else ids.combine_chunks()
    codes = [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()]
    return column_of(np.array(codes, dtype=np.int32)[numbers(encoded.indices)])


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _read(path: Path, columns: tuple[str, ...] | None = None) -> pa.Table:
    """A spooled table; of a sorted part only the named columns are touched."""
    import pyarrow as pa

    if columns is None:
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_stream(file).read_all()
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all().select(list(columns))
