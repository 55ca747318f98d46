"""Thoughts of a few decisions made again, from the artefacts of phase I and sequences that may be swapped."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Any

from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.stage_inputs import thoughts_read
from pulse_hf.reasoning.generator import open_generator
from pulse_hf.reasoning.thoughts import ThoughtSettings, load_spaces, think
from pulse_hf.schema import Decision, Sequence

# Sums of equal numbers in another order; a target that is seen moves agreements by far more.
_AGREEMENT_SLACK = 1e-4
STORED_SLACK = 1e-2  # agreements in bfloat16, of a batch with other neighbours and padding: up to 1e-3 was seen

__all__ = ["STORED_SLACK", "Regrown", "thoughts_again", "thoughts_stored"]


@dataclass(frozen=True)
class Regrown:
    """What was made of one decision.

    Args:
        lent: Items lent by similar users.
        texts: Every node's text, the root first.
        agreements: Every node's agreement.
        leaf: The chosen node.
    """

    lent: tuple[str, ...]
    texts: tuple[str, ...]
    agreements: tuple[float | None, ...]
    leaf: int

    def same(self, other: Regrown) -> bool:
        """Whether the other one, made in the same batch, is the same thought."""
        return self.leaf == other.leaf and self._alike(other, _AGREEMENT_SLACK)

    def stored_as(self, other: Regrown, *, whole: bool) -> bool:
        """Whether the other one, made in another batch and kept, is the same; of near leaves either may be chosen.

        Args:
            other: What is stored.
            whole: Compare the whole tree, not the base reason alone.
        """
        return self._alike(other, STORED_SLACK) if whole else self._base()._alike(other._base(), STORED_SLACK)

    def _base(self) -> Regrown:
        return Regrown(self.lent, self.texts[:1], self.agreements[:1], 0)

    def _alike(self, other: Regrown, slack: float) -> bool:
        if (self.lent, self.texts) != (other.lent, other.texts):
            return False
        pairs = zip(self.agreements, other.agreements, strict=True)
        return all(a == b or (a is not None and b is not None and abs(a - b) < slack) for a, b in pairs)


def thoughts_again(
    finished: FinishedRun,
    sequences: Series[Sequence],
    decisions: Series[Decision],
    lent: Mapping[str, tuple[Any, ...]],
) -> dict[str, Regrown]:
    """Grow the trees of some decisions as the stage ``thoughts`` does, with its engine and settings.

    Args:
        finished: The run.
        sequences: The run's own, or ones with swapped targets.
        decisions: Whose thoughts.
        lent: Decision id to what similar users lend, found in the same world.
    """
    if not decisions:
        return {}
    values = finished.settings("thoughts")
    seed = values.pop("seed")
    settings = ThoughtSettings.from_dict(values)
    items = {one.decision_id: lent[one.decision_id][0] for one in decisions}
    inputs = thoughts_read(finished, {sequence.user_id: sequence for sequence in sequences}, decisions, items)
    generator = open_generator(settings.engine, settings.model, batch_size=settings.batch_size)
    trees = think(inputs, generator, load_spaces(finished.run), settings, seed)
    return {
        one.prompt.key: Regrown(
            tuple(items[one.prompt.key]),
            tuple(node.raw for node in tree.nodes),
            tuple(node.agreement for node in tree.nodes),
            tree.leaf,
        )
        for one, tree in zip(inputs, trees, strict=True)
    }


def thoughts_stored(finished: FinishedRun, decisions: Series[Decision]) -> dict[str, Regrown]:
    """The same of what the stage kept, by decision id."""
    leaves = {row["decision_id"]: row["leaf"] for row in finished.rows("thoughts/thoughts.parquet")}
    return {
        key: Regrown(
            tuple(finished.stored_lent[key]),
            tuple(node.raw for node in finished.trees[key]),
            tuple(node.agreement for node in finished.trees[key]),
            leaves[key],
        )
        for key in (one.decision_id for one in decisions)
    }
