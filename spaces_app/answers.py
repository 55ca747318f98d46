"""Answers for people and programs: what is asked of a recommender, without any page.

Nothing here remembers who asked; a page keeps its own :class:`Answer` and gives it back to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from inputs import MAX_QUERY_CHARS, RefusedError, one_text
from numpy.typing import NDArray
from rationale_table import RationaleTable
from thinking import Mind
from thought_map import Neighbour, ThoughtMap

from pulse_hf.reasoning.tree_of_thought import Tree
from pulse_hf.recommender import Event, PulseRecommender, Recommendation

FOUND = 20
EXAMPLES = 3
EXAMPLE_EVENTS = 4
NEIGHBOURS = 8
SHOWN_PEOPLE = 1_000


@dataclass(frozen=True)
class Answer:
    """One ranking with all that it stands on.

    Args:
        history: What it was asked for.
        ranking: All retrieved candidates, best first.
        tree: The drafted reasons.
        own: The person's own reason, ``None`` where the drafted one was used.
        behaviour: ``(2,)`` place of the history on the map.
        reasons: Places of the tree's usable nodes by number.
        given: Place of the person's own reason.
        neighbours: Stored reasons near the reason that ranks, or near the history where there is none.
    """

    history: tuple[Event, ...]
    ranking: tuple[Recommendation, ...]
    tree: Tree
    own: str | None
    behaviour: NDArray[np.float64] | None
    reasons: dict[int, NDArray[np.float64]]
    given: NDArray[np.float64] | None
    neighbours: tuple[Neighbour, ...]

    @property
    def reason(self) -> str:
        """The reason the ranking stands on, ``""`` for none."""
        return self.ranking[0].rationale if self.ranking else ""

    @property
    def agreement(self) -> float | None:
        """How well it agrees with the history, in [-1, 1]."""
        return self.ranking[0].agreement if self.ranking else None


@dataclass(frozen=True)
class Move:
    """Where an item stands and how it came there.

    Args:
        item: The ranked item.
        rank: From 1.
        change: Places risen (positive) or fallen since the ranking before, counted among the candidates of both;
            ``None`` where it was no candidate before, or there was no ranking before.
    """

    item: Recommendation
    rank: int
    change: int | None


def moves(before: Answer | None, after: Answer) -> list[Move]:
    """The ranking of ``after`` with what rose and what fell since ``before``.

    Both are compared over the candidates they share, all of them and not only the first ones shown, so that an item
    never seems to move because others came or went.
    """
    old = [] if before is None else [one.item_id for one in before.ranking]
    new = [one.item_id for one in after.ranking]
    shared = set(old) & set(new)
    was = {item_id: place for place, item_id in enumerate(one for one in old if one in shared)}
    now = {item_id: place for place, item_id in enumerate(one for one in new if one in shared)}
    return [
        Move(item, rank, was[item.item_id] - now[item.item_id] if item.item_id in shared else None)
        for rank, item in enumerate(after.ranking, start=1)
    ]


class Answers:
    """What a page or a program can ask.

    Args:
        recommender: Loaded.
        rationales: Stored reasons with texts, if there are any.
        subject: What it recommends, in a few words.
        aligned: Whether row ``n`` of ``rationales`` is the reason behind vector ``n`` of the Thought Space.
    """

    def __init__(
        self,
        recommender: PulseRecommender,
        rationales: RationaleTable | None = None,
        subject: str = "",
        *,
        aligned: bool = False,
    ) -> None:
        self.recommender = recommender
        self.mind = Mind(recommender)
        self.rationales = rationales
        self.subject = subject
        self._aligned = aligned and rationales is not None
        shared = recommender.parts.shared
        self.map = ThoughtMap(shared.vectors) if len(shared.vectors) else None
        self._ids = list(recommender.parts.items)
        self._chosen = shared.item_indices
        self._folded = [(item.title.casefold(), item_id) for item_id, item in recommender.parts.items.items()]

    # -- the catalogue and the people ------------------------------------------------------------

    def title(self, item_id: str) -> str:
        """An item's title, or the text itself for one outside the catalogue."""
        item = self.recommender.parts.items.get(item_id)
        return item_id if item is None else item.title

    def search(self, query: object, limit: int = FOUND) -> list[tuple[str, str]]:
        """``(item id, title)`` of items whose title holds every word of the query; those that start with it first."""
        words = one_text(query, "The search", MAX_QUERY_CHARS).casefold().split()
        found = [(title, item_id) for title, item_id in self._folded if all(word in title for word in words)]
        start = " ".join(words)
        found.sort(key=lambda pair: not pair[0].startswith(start))
        return [(item_id, self.title(item_id)) for _, item_id in found[:limit]]

    @cached_property
    def people(self) -> list[str]:
        """Users of the run that can be picked; a published recommender holds none."""
        return sorted(self.recommender.users)[:SHOWN_PEOPLE]

    def choices(self, user_id: str) -> int:
        """How many choices a known user made."""
        return len(self.recommender.users[user_id])

    def history_of(self, user_id: object) -> list[Event]:
        """A known user's history.

        Raises:
            RefusedError: There is no such user here.
        """
        if not isinstance(user_id, str) or user_id not in self.recommender.users:
            raise RefusedError("There is no such person here; give a history of titles instead.")
        return self.recommender.history_of(user_id)

    @cached_property
    def examples(self) -> list[list[Event]]:
        """Histories built from the catalogue: an item and those most like it, far from each other."""
        vectors = self.recommender.parts.item_vectors
        ids = self._ids
        starts = [0]
        while len(starts) < min(EXAMPLES, len(ids)):
            starts.append(int((vectors @ vectors[starts].T).max(axis=1).argmin()))
        nearest = [np.argsort(-(vectors @ vectors[start]), kind="stable")[:EXAMPLE_EVENTS] for start in starts]
        return [[Event(ids[place]) for place in places.tolist()] for places in nearest]

    # -- answers ---------------------------------------------------------------------------------

    def answer(self, history: list[Event], own: str | None = None, before: Answer | None = None) -> Answer:
        """Rank for a history, by the drafted reason or by the person's own.

        Args:
            history: Oldest first, from :func:`inputs.read_history` or :meth:`history_of`.
            own: The person's own reason; ``""`` ranks without any.
            before: An earlier answer; its tree is reused if the history is the same.
        """
        told = tuple(history)
        known = before.tree if before is not None and before.history == told else None
        thought = self.mind.think(list(told), own, known)
        place = self._place
        point = thought.given
        if point is None:
            point = thought.behaviour if own == "" else thought.reasons.get(thought.tree.leaf, thought.behaviour)
        return Answer(
            history=told,
            ranking=tuple(thought.ranking),
            tree=thought.tree,
            own=own,
            behaviour=place(thought.behaviour),
            reasons={number: at for number, vector in thought.reasons.items() if (at := place(vector)) is not None},
            given=None if thought.given is None else place(thought.given),
            neighbours=() if self.map is None else tuple(self.map.neighbours(point, count=NEIGHBOURS)),
        )

    def _place(self, vector: NDArray[np.float32]) -> NDArray[np.float64] | None:
        return None if self.map is None else self.map.places(vector)[0]

    def told(self, neighbour: Neighbour) -> tuple[str, str]:
        """Title of the item chosen for a stored reason, and the reason's words where they are known."""
        title = self.title(self._ids[int(self._chosen[neighbour.row])])
        words = self.rationales.text(neighbour.row) if self._aligned and self.rationales is not None else ""
        return title, words
