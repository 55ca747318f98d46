"""The steps between a history and its scores: what is named, lent, drafted, chosen and judged (paper §4.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pulse_hf.composition import Parts
from pulse_hf.reasoning.thoughts import ThoughtSettings
from pulse_hf.retrieval.names import Event, Names, typed_text
from pulse_hf.retrieval.retriever import Retriever
from pulse_hf.schema import Decision, Item, Sequence, stable_hash

if TYPE_CHECKING:
    from pulse_hf.reasoning.examples import Thought
    from pulse_hf.reasoning.tree_of_thought import Tree

__all__ = ["NUM_RETRIEVED", "Answering", "Asked"]

NUM_RETRIEVED = 100
KEPT_THOUGHTS = 512


@dataclass(frozen=True, slots=True)
class Asked:
    """A history as it was read, with the catalogue and what it names beyond, and what is to be scored for it."""

    past: Sequence
    items: MutableMapping[str, Item]
    candidates: Series[str] = ()

    @property
    def key(self) -> str:
        """Seeds what is drafted: the history's own, so that no other history's company changes its reasons."""
        past = self.past
        return f"{stable_hash('history', *past.item_ids, *map(str, past.ratings), *past.reviews):016x}"


class Answering:
    """The steps of a :class:`~pulse_hf.recommender.PulseRecommender`, for many histories at once.

    One thread at a time: what was read for one answer is forgotten before another; trees are kept.

    Args:
        parts: What the recommender is composed of.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.names = Names(parts.items, parts.item_vectors, parts.record["encoder"])
        sizes = parts.record["neighbours"]
        self.retriever = Retriever(
            parts.sequential, self.names, parts.pool, sizes["num_neighbours"], sizes["neighbour_items"]
        )
        self.trees: OrderedDict[Sequence, Tree] = OrderedDict()
        self._settings = ThoughtSettings.from_dict(parts.record["thoughts"])

    def asked(self, history: Series[str | Event], k: int, candidates: Series[str] | None) -> Asked:
        """A history as it was read, with what is to be ranked: what was given, else the best by SASRec."""
        past, items = self.names.read(history)
        if candidates is None:
            return Asked(past, items, self.retriever.best(past, items, max(NUM_RETRIEVED, k)))
        return Asked(past, items, list(dict.fromkeys(self.given(candidates, items))))

    def given(self, candidates: Series[str], items: MutableMapping[str, Item]) -> list[str]:
        """Item ids of given candidates; refused before a tree is grown, which may take seconds."""
        chosen = self.names.found(candidates, items)
        if not chosen:
            raise ValueError("there are no candidates to score; give at least one item id or title")
        return chosen

    def trees_of(self, asked: Series[Asked]) -> list[Tree]:
        """The tree of each history; those that are not kept from before grow together."""
        new = {one.past: one for one in asked if one.past not in self.trees}
        if new:
            self.trees.update(zip(new, self._grown(list(new.values())), strict=True))
        for one in asked:
            self.trees.move_to_end(one.past)
        trees = [self.trees[one.past] for one in asked]  # before room is made: more may be asked for than are kept
        while len(self.trees) > KEPT_THOUGHTS:
            self.trees.popitem(last=False)
        return trees

    def _grown(self, asked: Series[Asked]) -> list[Tree]:
        from pulse_hf.reasoning.agreement import FULL_SPACE, agreement_with
        from pulse_hf.reasoning.prompts import reason_prompt
        from pulse_hf.reasoning.tree_of_thought import grow_trees

        told = [
            (Decision(one.key, len(one.past), "test"), self.parts.shared.told(one.past, one.items)) for one in asked
        ]
        prompts = [
            reason_prompt(
                decision, one.past, one.items, self.retriever.lent(one.past, one.items), self._settings.budget
            )
            for one, (decision, _) in zip(asked, told, strict=True)
        ]
        measured = agreement_with(told, {FULL_SPACE: self.parts.thought_space}, self.parts.record["seed"])
        untold = {decision.decision_id for decision, text in told if not text}

        def evaluate(pairs: list[tuple[str, str]]) -> list[float]:
            # An empty history agrees with nothing: all its reasons alike, and the tie is broken as any other.
            return [0.0 if key in untold else found for (key, _), found in zip(pairs, measured(pairs), strict=True)]

        trees = grow_trees(
            prompts,
            self.parts.generator,
            evaluate,
            self._settings.tree,
            self._settings.sampling,
            self.parts.record["seed"],
        )
        for tree in trees:
            if tree.prompt.key in untold:
                tree.nodes = [replace(node, agreement=None) for node in tree.nodes]
        return trees

    def thoughts(self, asked: Series[Asked], rationale: str | None) -> list[Thought]:
        """The reason of each history and its agreement: the chosen leaf of its tree, or the given rationale."""
        from pulse_hf.reasoning.examples import NO_THOUGHT, Thought

        if rationale is None:
            chosen = [tree.chosen for tree in self.trees_of(asked)]
            return [NO_THOUGHT if node is None else Thought(node.text, node.agreement) for node in chosen]
        text = typed_text(rationale, "the rationale")
        return [Thought(text, self._agreement(one, text)) if text else NO_THOUGHT for one in asked]

    def _agreement(self, one: Asked, reason: str) -> float | None:
        told = self.parts.shared.told(one.past, one.items)
        return float(self.parts.thought_space.agreement(told, [reason])[0]) if told else None

    def scores(self, asked: Series[Asked], thoughts: Series[Thought]) -> list[list[float]]:
        """One raw logit per candidate of each history."""
        from pulse_hf.models.scorer.processing_scorer import score_sets
        from pulse_hf.reasoning.examples import scorer_example

        parts = self.parts
        parts.shared.forget(beyond=KEPT_THOUGHTS)
        parts.processor.forget(beyond=KEPT_THOUGHTS + len(parts.items))
        if parts.shape.shared_temperature is not None:  # at once, which is faster; each example then finds its own
            told = [parts.shared.told(one.past, one.items) for one in asked]
            parts.shared.read((thought.reason or "" for thought in thoughts), told)
        fits, shared = parts.processor.prompt_fits, parts.shared
        examples = [
            scorer_example(one.past, one.items, one.candidates, thought, parts.shape, fits, shared)
            for one, thought in zip(asked, thoughts, strict=True)
        ]
        return score_sets(parts.scorer, parts.processor, examples)
