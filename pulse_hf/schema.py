"""Ground floor: the records that travel between stages, and the Parquet tables they are kept in.

Three words are never mixed: ``item_id`` is the shop's own string, ``item_index`` is a dense integer
in ``[1, num_items]`` (0 is padding) and lives only inside models, ``item_text`` is the line of words
a language model reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the catalogue.

    Args:
        item_id: The shop's id.
        title: The name a person sees.
        item_text: One clean line a language model or encoder reads; begins with the title.
    """

    item_id: str
    title: str
    item_text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """All events of one user, oldest first; the four tuples run in parallel.

    Leave-one-out: a user with three or more events has a test target (the last event), a validation target
    (the second last) and training events (the rest); a user with fewer only has training events. Where ``cut`` is
    set (global time, people, or strict times) it says which of the user's events train, validate and test.

    Args:
        user_id: The shop's id of the person.
        item_ids: What was chosen.
        timestamps: When, in seconds; empty if the data only has an order (no times).
        ratings: Stars, ``None`` where unknown.
        reviews: The person's words, ``""`` where unknown.
        cut: Number of training events, position of the validation target and position of the test target (-1 for
            none); ``None`` for leave-one-out. Events that are none of these are history only.
    """

    user_id: str
    item_ids: tuple[str, ...]
    timestamps: tuple[int, ...]
    ratings: tuple[float | None, ...]
    reviews: tuple[str, ...]
    cut: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def num_train(self) -> int:
        """Number of training events: everything before the validation target."""
        if self.cut is not None:
            return self.cut[0]
        return len(self) - 2 if len(self) >= 3 else len(self)

    def split_of(self, position: int) -> Split | None:
        """The split in which the event at ``position`` is the target; ``None`` if it is history only."""
        if position < self.num_train:
            return "train"
        if self.cut is not None:
            return "test" if position == self.cut[2] else "validation" if position == self.cut[1] else None
        return "test" if position == len(self) - 1 else "validation"

    def before(self, position: int) -> Sequence:
        """The history that a decision at ``position`` may see: events strictly before it."""
        return Sequence(
            self.user_id,
            self.item_ids[:position],
            self.timestamps[:position],
            self.ratings[:position],
            self.reviews[:position],
        )

    def training(self) -> Sequence:
        """The training events alone: what fits may see of this user."""
        return self.before(self.num_train)


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice to be predicted: the event at ``position`` of ``user_id``'s sequence."""

    user_id: str
    position: int
    split: Split

    @property
    def decision_id(self) -> str:
        """Key of every table that has a row per decision."""
        return f"{self.user_id}#{self.position}"


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """The frozen items that every system ranks for one decision.

    Args:
        decision_id: Which decision.
        split: The decision's split.
        item_ids: 1 target and N negatives in a shuffled order that is stored.
        target_index: Where the target stands in ``item_ids``.
    """

    decision_id: str
    split: Split
    item_ids: tuple[str, ...]
    target_index: int

    @property
    def decision(self) -> Decision:
        """The decision itself; a user's id may hold a ``#``, too.

        >>> CandidateSet("u#1#12", "test", ("a", "t"), 1).decision
        Decision(user_id='u#1', position=12, split='test')
        """
        user_id, _, position = self.decision_id.rpartition("#")
        return Decision(user_id, int(position), self.split)

    def with_negatives(self, number: int | None) -> CandidateSet:
        """The target and the first ``number`` negatives, in their order; the whole set for ``None``.

        >>> CandidateSet("u#1", "train", ("a", "b", "t", "c"), 2).with_negatives(1)
        CandidateSet(decision_id='u#1', split='train', item_ids=('a', 't'), target_index=1)
        """
        if number is None:
            return self
        negatives = [place for place in range(len(self.item_ids)) if place != self.target_index][:number]
        places = sorted([*negatives, self.target_index])
        items = tuple(self.item_ids[place] for place in places)
        return CandidateSet(self.decision_id, self.split, items, places.index(self.target_index))


def stable_hash(*parts: str | int) -> int:
    """A 64-bit hash of the parts that is the same in every process and on every machine.

    Used wherever an order or a fold must not depend on ids, file order or ``PYTHONHASHSEED``.

    >>> stable_hash("a", 1) == stable_hash("a", 1), stable_hash("a", 1) == stable_hash("a", 2)
    (True, False)
    """
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hash_order(kind: str, names: Series[str]) -> list[int]:
    """Places of the names in the order of their :func:`stable_hash`; equal hashes by name.

    Args:
        kind: The hash's first part, so that users and items of one name fall apart.
        names: Each once.

    Example:
        >>> names = ["a", "b", "c"]
        >>> hash_order("item", names) == sorted(range(3), key=lambda place: stable_hash("item", names[place]))
        True
    """
    import numpy as np

    start, sha256 = f"{kind}\x1f", hashlib.sha256
    digests = b"".join([sha256((start + name).encode()).digest()[:8] for name in names])
    hashes = np.frombuffer(digests, ">u8").astype(np.uint64)
    order = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[order]) == 0).any():  # once in some billion names
        return sorted(range(len(names)), key=lambda place: (hashes[place], names[place]))
    places: list[int] = order.tolist()
    return places


def fold_of(user_id: str, num_folds: int, seed: int) -> int:
    """The cross-fitting fold of a user, in ``[0, num_folds)``."""
    return stable_hash("fold", seed, user_id) % num_folds


def table_schema(name: str) -> pa.Schema:
    """The Arrow schema of one table; every Parquet file of a run is written with one of these.

    Raises:
        KeyError: The name is not a table of ours.
    """
    import pyarrow as pa

    decision = [
        ("decision_id", pa.string()),
        ("user_id", pa.string()),
        ("position", pa.int32()),
        ("split", pa.string()),
    ]
    provenance = [
        ("engine", pa.string()),
        ("model_id", pa.string()),
        ("revision", pa.string()),
        ("prompt_sha256", pa.string()),
        ("seed", pa.int64()),
    ]
    fields = {
        "items": [("item_id", pa.string()), ("title", pa.string()), ("item_text", pa.string())],
        "sequences": [
            ("user_id", pa.string()),
            ("item_ids", pa.list_(pa.string())),
            ("timestamps", pa.list_(pa.int64())),
            ("ratings", pa.list_(pa.float32())),
            ("reviews", pa.list_(pa.string())),
            ("cut", pa.list_(pa.int32())),
        ],
        "decisions": decision,
        "candidates": [*decision, ("item_ids", pa.list_(pa.string())), ("target_index", pa.int32())],
        "neighbours": [
            *decision,
            ("user_ids", pa.list_(pa.string())),
            ("similarities", pa.list_(pa.float32())),
            ("item_ids", pa.list_(pa.string())),
        ],
        "rationales": [*decision, ("status", pa.string()), ("text", pa.string()), ("raw", pa.string()), *provenance],
        "thoughts": [
            *decision,
            ("reason", pa.string()),
            ("agreement", pa.float32()),
            ("base_reason", pa.string()),
            ("leaf", pa.int32()),
            *provenance,
        ],
        "trees": [
            *decision,
            ("node", pa.int32()),
            ("parent", pa.int32()),
            ("depth", pa.int32()),
            ("status", pa.string()),
            ("text", pa.string()),
            ("raw", pa.string()),
            ("log_likelihood", pa.float32()),
            ("agreement", pa.float32()),
        ],
        "places": [
            ("scores", pa.string()),
            ("above", pa.list_(pa.int32())),
            ("tied", pa.list_(pa.int32())),
        ],
        "scores": [*decision, ("item_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float64()))],
    }
    return pa.schema(fields[name])
