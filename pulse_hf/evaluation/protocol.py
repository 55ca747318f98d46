"""What every system of a comparison may see: one record, loaded once, the same for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.artifacts import read_tensors
from pulse_hf.schema import CandidateSet, Decision, Item
from pulse_hf.schema import Sequence as History

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.reasoning.shared_reasons import SharedReasons

COLD_EVENTS = 5

__all__ = ["COLD_EVENTS", "Study", "load_study"]


@dataclass(frozen=True)
class Study:
    """The data all systems share, with what is counted from training events alone.

    Args:
        run: The run folder, where fitted models lie.
        sequences: The users' sequences by user id.
        items: The catalogue by item id, in catalogue order.
        sets: Candidate sets of all splits by decision id.
        decisions: Decisions by decision id, in the order of the candidates table.
    """

    run: Path
    sequences: Mapping[str, History]
    items: Mapping[str, Item]
    sets: Mapping[str, CandidateSet]
    decisions: Mapping[str, Decision]

    @cached_property
    def training_counts(self) -> Counter[str]:
        """How often each item was chosen in training events (validation and test events never count)."""
        return Counter(item for sequence in self.sequences.values() for item in sequence.training().item_ids)

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Dense index of each item, from 1 in catalogue order; 0 is padding."""
        return {item_id: index for index, item_id in enumerate(self.items, start=1)}

    @cached_property
    def item_vectors(self) -> NDArray[np.float32]:
        """Frozen encoder's vectors of the item texts, (num_items, dim), unit length, catalogue order.

        Raises:
            ValueError: There is not one vector per item.
        """
        path = self.run / "sequential" / "item_vectors.safetensors"
        tensors = read_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if len(tensors) != 1 or next(iter(shapes.values()))[0] != len(self.items):
            raise ValueError(f"{path}: found {shapes}, expected one tensor with {len(self.items)} rows, one per item")
        vectors = next(iter(tensors.values())).float().numpy()
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)

    @cached_property
    def shared(self) -> SharedReasons:
        """The rationales that vote, with the texts of this study encoded once."""
        from pulse_hf.reasoning.agreement import FULL_SPACE, load_space
        from pulse_hf.reasoning.shared_reasons import load_shared_reasons

        return load_shared_reasons(self.run, self.sequences, list(self.items), load_space(self.run, FULL_SPACE))

    def split(self, split: str) -> list[Decision]:
        """The decisions of one split, in stored order."""
        return [d for d in self.decisions.values() if d.split == split]

    def cold(self, decisions: Sequence[Decision]) -> NDArray[np.bool_]:
        """(decisions,) whether each one's target has at most ``COLD_EVENTS`` training events."""
        return np.array([self.training_counts[item] <= COLD_EVENTS for item in self.target_items(decisions)])

    def histories(self, decisions: Sequence[Decision]) -> list[History]:
        """What each decision may see."""
        return [self.sequences[d.user_id].before(d.position) for d in decisions]

    def candidates(self, decisions: Sequence[Decision]) -> list[tuple[str, ...]]:
        """The items that every system ranks for each decision."""
        return [self.sets[d.decision_id].item_ids for d in decisions]

    def targets(self, decisions: Sequence[Decision]) -> list[int]:
        """Where the target stands in each decision's candidates."""
        return [self.sets[d.decision_id].target_index for d in decisions]

    def target_items(self, decisions: Sequence[Decision]) -> list[str]:
        """The items that were chosen."""
        return [self.sets[d.decision_id].item_ids[self.sets[d.decision_id].target_index] for d in decisions]


def load_study(run: Path) -> Study:
    """Read a run's sequences, catalogue and candidate sets.

    Args:
        run: The run folder, with the stages ``prepare`` and ``candidates`` finished.

    Raises:
        ArtifactError: A table is missing or damaged.
    """
    from pulse_hf.data.sequences import items_by_id, sequences_by_user
    from pulse_hf.retrieval.candidates import load_candidates

    sets = load_candidates(run)
    return Study(
        run,
        sequences_by_user(run),
        items_by_id(run),
        {one.decision_id: one for one in sets},
        {one.decision_id: one.decision for one in sets},
    )
