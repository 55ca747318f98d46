"""A run with other targets, for the leak audit: what changes with them hangs on them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import replace
from typing import Any

from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.lending import lent_items
from pulse_hf.evaluation.stage_inputs import Texts, stage_texts
from pulse_hf.schema import SPLITS, Sequence, Split, stable_hash

CANARY = "zqcanary"

__all__ = ["CANARY", "SwappedTargets", "swap_targets"]


def swap_targets(sequences: Series[Sequence], items: Series[str], splits: Series[Split], seed: int) -> list[Sequence]:
    """The same users with other targets: another item, other stars, a canary for a review.

    Args:
        sequences: All users.
        items: The catalogue, with more items than any user has.
        splits: Whose targets are swapped.
        seed: Which other items.

    Example:
        >>> user = Sequence("u", ("a", "b", "c"), (1, 2, 3), (5.0, 5.0, 5.0), ("", "", "fine"))
        >>> (other,) = swap_targets([user], ["a", "b", "c", "d"], ["test"], seed=0)
        >>> other.item_ids, other.ratings, other.reviews[2].startswith(CANARY)
        (('a', 'b', 'd'), (5.0, 5.0, 1.0), True)
    """
    return [_swapped(sequence, items, splits, seed) for sequence in sequences]


def _swapped(sequence: Sequence, items: Series[str], splits: Series[Split], seed: int) -> Sequence:
    item_ids, ratings, reviews = list(sequence.item_ids), list(sequence.ratings), list(sequence.reviews)
    taken = set(item_ids)
    for position in range(sequence.num_train, len(sequence)):
        if sequence.split_of(position) in splits:
            start = stable_hash("swap", seed, sequence.user_id, position) % len(items)
            other = next(item for item in (*items[start:], *items[:start]) if item not in taken)
            taken.add(other)
            item_ids[position], ratings[position] = other, 1.0 if ratings[position] != 1.0 else 2.0
            reviews[position] = f"{CANARY} {CANARY}{position} says {other}"
    return replace(sequence, item_ids=tuple(item_ids), ratings=tuple(ratings), reviews=tuple(reviews))


class SwappedTargets:
    """The run's inputs as they are, with all targets swapped, and with test targets swapped.

    Args:
        finished: The run.
        seed: Which other items.
    """

    def __init__(self, finished: FinishedRun, seed: int) -> None:
        self.finished = finished
        self.seed = seed
        self._made: dict[tuple[Split, ...], tuple[Texts, dict[str, tuple[Any, ...]]]] = {}

    def sequences(self, splits: tuple[Split, ...]) -> list[Sequence]:
        """The users with the targets of some splits swapped."""
        return swap_targets(self.finished.sequences, list(self.finished.items), splits, self.seed)

    def lent(self, splits: tuple[Split, ...]) -> dict[str, tuple[Any, ...]]:
        """Similar users and what they lend, found anew."""
        return self._world(splits)[1]

    def _world(self, splits: tuple[Split, ...]) -> tuple[Texts, dict[str, tuple[Any, ...]]]:
        if splits not in self._made:
            sequences = self.sequences(splits)
            decisions = [decision for split in SPLITS for decision in self.finished.decisions(split)]
            found = lent_items(self.finished, sequences, decisions) if self.finished.has("sequential") else {}
            texts = stage_texts(self.finished, sequences, {key: row[0] for key, row in found.items()})
            for decision in decisions if found else ():
                lent, others, near = found[decision.decision_id]
                texts.setdefault(f"similar-users/{decision.split}", []).append(repr((lent, others, near)))
            self._made[splits] = (texts, found)
        return self._made[splits]

    def training_inputs(self) -> tuple[list[str], str]:
        """All targets swapped: nothing before test time may change."""
        return self._compare(("validation", "test"), lambda name: not name.endswith("/test"))

    def all_inputs(self) -> tuple[list[str], str]:
        """Test targets swapped: nothing at all may change (candidate sets of test decisions are no input here)."""
        return self._compare(("test",), lambda name: True)

    def canaries(self) -> tuple[list[str], str]:
        """The swapped targets' reviews are canaries: none may be found in what a model reads."""
        problems, looked = [], 0
        worlds: list[tuple[tuple[Split, ...], str]] = [(("validation", "test"), "/test"), (("test",), "nothing")]
        for splits, excused in worlds:
            for name, rows in self._world(splits)[0].items():
                if not name.endswith(excused):
                    looked += len(rows)
                    hits = sum(CANARY in row for row in rows)
                    if hits:
                        problems.append(f"{name}: {hits} of {len(rows)} texts hold the review of a target")
        return problems, f"{looked:,} texts"

    def _compare(self, splits: tuple[Split, ...], of_interest: Callable[[str], bool]) -> tuple[list[str], str]:
        before, after = self._world(())[0], self._world(splits)[0]
        names = [name for name in before if of_interest(name)]
        problems = []
        for name in names:
            pairs = list(zip(before[name], after[name], strict=False))
            differing = sum(old != new for old, new in pairs) + abs(len(before[name]) - len(after[name]))
            if differing:
                problems.append(f"{name}: {differing} of {len(before[name])} inputs change with the targets")
        return problems, f"{sum(len(before[name]) for name in names):,} inputs: {', '.join(names)}"
