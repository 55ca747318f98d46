"""What the catalogue and its people offer for a history: the best items by SASRec, and items lent by similar users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.retrieval.names import Names
from pulse_hf.retrieval.similar_users import NO_USER, UserPool, lend_items
from pulse_hf.schema import Item, Sequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.models.sasrec import PulseSASRecModel

__all__ = ["Pool", "Retriever"]

OWN_EVENTS = 3  # a start of so many events that somebody shares is the same person's; two may be a coincidence


@dataclass(frozen=True)
class Pool:
    """The anonymous users that similar users are sought among.

    Args:
        vectors: ``(num_users, dim)`` SASRec vectors of training events.
        item_ids: Each user's training events, oldest first.
    """

    vectors: NDArray[np.float32]
    item_ids: list[tuple[str, ...]]


class Retriever:
    """Retrieve items for a history (paper §4.2, Phase II).

    Args:
        sequential: SASRec of the catalogue.
        names: Finds ids and titles in the catalogue.
        pool: The users that similar users are sought among.
        num_neighbours: Similar users that lend.
        neighbour_items: Items that they lend at most.

    Example:
        Of an empty history nothing is known, and SASRec is not asked:

        >>> items = {one: Item(one, one, one) for one in ("kettle", "tray", "lamp")}
        >>> names = Names(items, np.zeros((3, 2), np.float32), "none is asked")
        >>> pool = Pool(np.eye(2, dtype=np.float32), [("tray",), ("tray", "lamp")])
        >>> retriever = Retriever(None, names, pool, num_neighbours=1, neighbour_items=2)
        >>> retriever.best(*names.read([]), count=2)
        ['tray', 'lamp']
    """

    def __init__(
        self, sequential: PulseSASRecModel, names: Names, pool: Pool, num_neighbours: int, neighbour_items: int
    ) -> None:
        self.sequential, self.names, self.pool = sequential, names, pool
        self.num_neighbours, self.neighbour_items = num_neighbours, neighbour_items

    def best(self, past: Sequence, items: Mapping[str, Item], count: int) -> list[str]:
        """The catalogue's best by SASRec; by popularity where nothing is known of the person.

        Args:
            past: The history.
            items: What :meth:`~pulse_hf.retrieval.names.Names.read` returned beside it.
            count: How many items at most.

        Returns:
            Item ids, best first, without those of the history; equal ones in catalogue order.

        Raises:
            ValueError: The encoder gives no vectors for a title outside the catalogue.
            ConnectionError: That encoder is not here, and the Hub is out of reach.
        """
        indices = self.names.stand_ins(past.item_ids, items)
        scores = self.sequential.scores([indices])[0, 1:].cpu().numpy() if indices else self._popularity
        return self.names.best(scores, count, without=past.item_ids)

    def lent(self, past: Sequence, items: Mapping[str, Item]) -> list[str]:
        """Items that similar users lend; none where nothing is known of the person.

        Whoever is in the pool does not lend to themselves: neither somebody all of whose events the history begins
        with nor, of three events or more, whoever goes on from the whole history. A history that was cut back to try
        a recommender is so not told what came later; one of one or two events may be.

        Args:
            past: The history.
            items: What :meth:`~pulse_hf.retrieval.names.Names.read` returned beside it.

        Returns:
            Item ids, most votes first (:func:`~pulse_hf.retrieval.similar_users.lend_items`).

        Raises:
            ValueError: As in :meth:`best`.
            ConnectionError: As in :meth:`best`.
        """
        indices = self.names.stand_ins(past.item_ids, items)
        if not indices:
            return []
        query, rows = self.sequential.user_vectors([indices]).cpu().numpy(), self.pool.item_ids
        # Twice as many as lend, so that there are enough when some are left out.
        places, cosines = self._users.nearest(query, ["new user"], 2 * self.num_neighbours + 1)
        found = [pair for pair in zip(places[0].tolist(), cosines[0].tolist(), strict=True) if pair[0] != NO_USER]
        known = past.item_ids
        ahead = [pair for pair in found if len(known) >= OWN_EVENTS and rows[pair[0]][: len(known)] == known]
        behind = [pair for pair in found if known[: len(rows[pair[0]])] == rows[pair[0]]]
        # Of several whose events the history begins with, the nearest is the person; of those ahead any may be.
        own = ahead or behind[:1]
        found = [pair for pair in found if pair not in own][: self.num_neighbours]
        return lend_items(
            [str(place) for place, _ in found],
            [cosine for _, cosine in found],
            {str(place): Sequence(str(place), rows[place], (), (), ()) for place, _ in found},
            history=past.item_ids,
            before=None,
            max_items=self.neighbour_items,
        )

    @cached_property
    def _popularity(self) -> NDArray[np.int64]:
        """How often each item of the catalogue was chosen by the pool, counted once."""
        counts = Counter(item_id for row in self.pool.item_ids for item_id in row)
        return np.array([counts[item_id] for item_id in self.names.ids], dtype=np.int64)

    @cached_property
    def _users(self) -> UserPool:
        """The pool, made ready once: it may hold a million people."""
        return UserPool(self.pool.vectors, [str(number) for number in range(len(self.pool.item_ids))])
