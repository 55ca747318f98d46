"""Choices made for the same reason: what a thought says about items, by the rationales of those who chose them.

Every training choice has a rationale r+, a point of the Thought Space. A new reason r* is another point there, and so
is the behaviour b_u. The items chosen for reasons near them are supported by them: a kernel vote in Thought Space, the
way kNN-LM (Khandelwal et al., 2020, arXiv 1911.00172) lets stored contexts vote for the next token. Ours; the paper
compares r* with b_u only (Eq. 2).

    support(i | q) = sum over r+ of item i of exp((cos(q, r+) - 1) / temperature),    q = r* or b_u
    evidence(i | q) = log((support(i) / mean support of all items + smoothing) / (1 + smoothing))

A place of its own in the space is the candidate's title, where the space was fitted with titles as well: how near it
is to r* and to b_u is a further voice, which an item without any rationale has, too.

The evidence of an average item is 0. It depends on the item and the query alone, never on the company the item is
in. A person's own rationales never vote on that person's decisions, so a training row is like a test row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pulse_hf import artifacts
from pulse_hf.reasoning.behaviour import behaviour_text
from pulse_hf.schema import Item, Sequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VECTORS", "SharedReasons", "Space", "chosen_for", "inputs_sha256", "load_shared_reasons"]

VECTORS = "reasons.safetensors"


class Space(Protocol):
    """What is asked of the frozen thought space."""

    @property
    def config(self) -> Any:
        """Has ``max_events`` and ``review_words``: how much of a behaviour is told."""

    def encode_rationales(self, texts: Series[str]) -> Any:
        """Reasons to unit vectors ``(n, dim)``."""

    def encode_histories(self, texts: Series[str]) -> Any:
        """Behaviours to unit vectors ``(n, dim)``."""


@dataclass
class SharedReasons:
    """The rationales of all training choices, as votes for the items chosen.

    Args:
        vectors: ``(num_rationales, dim)`` of unit length.
        item_indices: ``(num_rationales,)``, each rationale's item by its place in the catalogue, from 0.
        places: Item id to that place, for the whole catalogue.
        space: The thought space of the vectors.
        user_ids: Whose rationale each is; empty where users are not kept.
    """

    vectors: NDArray[np.float32]
    item_indices: NDArray[np.int64]
    places: Mapping[str, int]
    space: Space
    user_ids: Series[str] = ()
    _reasons: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    _behaviours: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    _titles: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Sort out whose rationale is whose, once."""
        if len(self.vectors) != len(self.item_indices):
            raise ValueError(
                f"found {len(self.vectors)} vectors for {len(self.item_indices)} items, expected one for each"
            )
        self._of_user: dict[str, list[int]] = {}
        for row, user_id in enumerate(self.user_ids):
            self._of_user.setdefault(user_id, []).append(row)

    def chosen(self) -> list[tuple[str, str]]:
        """``(user id, item id)`` of every vote, in stored order."""
        ids = list(self.places)
        return [(user, ids[place]) for user, place in zip(self.user_ids, self.item_indices.tolist(), strict=True)]

    def told(self, history: Sequence, items: Mapping[str, Item]) -> str:
        """The target-free behaviour text b_u of a history."""
        limits = self.space.config
        return behaviour_text(
            history, items, target=None, max_events=limits.max_events, review_words=limits.review_words
        )

    def read(self, reasons: Iterable[str], behaviours: Iterable[str], titles: Iterable[str] = ()) -> None:
        """Encode texts together, which is faster than one by one; votes then find them."""
        for texts, known, encode in (
            (reasons, self._reasons, self.space.encode_rationales),
            (behaviours, self._behaviours, self.space.encode_histories),
            (titles, self._titles, self.space.encode_rationales),
        ):
            new = [text for text in dict.fromkeys(texts) if text and text not in known]
            if new:
                known.update(zip(new, np.asarray(encode(new), dtype=np.float32), strict=True))

    def forget(self, *, beyond: int) -> None:
        """Forget texts that were read once there are more than ``beyond``: a server would fill its memory.

        Not while another thread votes; :class:`pulse_hf.recommender.PulseRecommender` lets one in at a time.
        """
        for known in (self._reasons, self._behaviours):
            if len(known) > beyond:
                known.clear()
        if len(self._titles) > beyond + len(self.places):
            self._titles.clear()

    def votes(
        self,
        reason: str | None,
        history: Sequence,
        items: Mapping[str, Item],
        item_ids: Series[str],
        *,
        temperature: float,
        smoothing: float,
        titles: bool = False,
    ) -> list[tuple[float, ...]]:
        """The evidence of a reason and that of the behaviour behind it, for each item.

        Args:
            reason: r*; without one its evidence is 0 for all.
            history: What the decision may see.
            items: The catalogue.
            item_ids: Items to vote on.
            temperature: Width of the kernel; small ones listen to the nearest rationales only.
            smoothing: Votes that every item is given, in an average item's votes.
            titles: Also how near each item's title is to r* and to b_u.

        Returns:
            Per item two natural logarithms, each at least ``log(smoothing / (1 + smoothing))``; with ``titles`` two
            cosines after them, 0 where there is no reason.

        Raises:
            RuntimeError: Another thread made it forget what was read for this vote.
        """
        text = self.told(history, items)
        names = [items[item_id].title for item_id in item_ids] if titles else []
        self.read([reason or ""], [text], names)
        queries = (_vector(self._reasons, reason), _vector(self._behaviours, text))
        found = [self.evidence(query, item_ids, temperature, smoothing, history.user_id) for query in queries]
        if titles:
            found += [self._near(query, names) for query in queries]
        return list(zip(*found, strict=True))

    def near(self, told: str, names: Series[str]) -> list[float]:
        """Agreement of a behaviour with titles, in [-1, 1].

        Args:
            told: The behaviour text b_u.
            names: Titles.

        Raises:
            RuntimeError: As in :meth:`votes`.
        """
        self.read((), [told], names)
        return self._near(_vector(self._behaviours, told), names)

    def _near(self, query: NDArray[np.float32] | None, names: Series[str]) -> list[float]:
        if query is None:
            return [0.0] * len(names)
        vectors = [_vector(self._titles, name) for name in names]  # an empty title is near nothing
        return [0.0 if vector is None else float(vector @ query) for vector in vectors]

    def evidence(
        self,
        query: NDArray[np.float32] | None,
        item_ids: Series[str],
        temperature: float,
        smoothing: float,
        user_id: str = "",
    ) -> list[float]:
        """How much more a point of the space speaks for each item than for an average one.

        Args:
            query: ``(dim,)`` of unit length; without one nothing is known and all is 0.
            item_ids: Items; one outside the catalogue gets what one that nobody chose gets.
            temperature: As in :meth:`votes`.
            smoothing: As in :meth:`votes`.
            user_id: Whose decision it is; this person's own rationales do not vote.

        Example:
            >>> shared = SharedReasons(np.eye(2, dtype=np.float32), np.array([0, 1]), {"a": 0, "b": 1}, None)
            >>> found = shared.evidence(np.array([1.0, 0.0]), ["a", "b", "new"], temperature=0.2, smoothing=0.5)
            >>> [round(value, 2) for value in found]
            [0.51, -1.07, -1.1]
        """
        if query is None or not len(self.vectors):
            return [0.0] * len(item_ids)
        votes = np.exp((self.vectors @ query - 1.0) / temperature).astype(np.float64)
        votes[self._of_user.get(user_id, [])] = 0.0
        support = np.bincount(self.item_indices, votes, minlength=len(self.places))
        mean = support.mean()
        if mean == 0:
            return [0.0] * len(item_ids)
        known = np.log((support / mean + smoothing) / (1 + smoothing))
        unknown = np.log(smoothing / (1 + smoothing))  # 0 would be above most of a catalogue, whose mean a few carry
        return [float(known[self.places[one]] if one in self.places else unknown) for one in item_ids]


def _vector(known: Mapping[str, NDArray[np.float32]], text: str | None) -> NDArray[np.float32] | None:
    """The vector of a text that was just read; none where there is no text, which says nothing."""
    if not text:
        return None
    try:
        return known[text]
    except KeyError:  # never 0: all candidates would seem equally good
        raise RuntimeError("a text was forgotten while it was voted by; let one thread in at a time") from None


def chosen_for(rationales: Iterable[Mapping[str, Any]], sequences: Mapping[str, Sequence]) -> list[tuple[str, str]]:
    """``(user id, chosen item)`` of every usable rationale, in stored order; the leak audit calls it, too."""
    return [
        (row["user_id"], sequences[row["user_id"]].item_ids[row["position"]])
        for row in rationales
        if row["status"] == "ok"
    ]


def inputs_sha256(chosen: Iterable[tuple[str, str]]) -> str:
    """The sha256 of who chose what for a reason that votes."""
    return artifacts.sha256_of_text("\x1f".join(pair) for pair in chosen)


def load_shared_reasons(
    run: Path, sequences: Mapping[str, Sequence], catalogue: Series[str], space: Space
) -> SharedReasons:
    """The votes of a run, from its stages ``rationales`` and ``thought-space``.

    Args:
        run: The run's folder.
        sequences: By user id.
        catalogue: Item ids in their stored order.
        space: The run's full thought space.
    """
    chosen = chosen_for(artifacts.read_table(run / "rationales" / "rationales.parquet").to_pylist(), sequences)
    vectors = artifacts.read_tensors(run / "thought_space" / VECTORS)["vectors"].numpy()
    places = {item_id: place for place, item_id in enumerate(catalogue)}
    indices = np.array([places[item_id] for _, item_id in chosen], dtype=np.int64)
    return SharedReasons(vectors, indices, places, space, [user_id for user_id, _ in chosen])
