"""The worth of a reason: the fitted ``pulse`` with its own reason, none, another user's, a random leaf.

Everything but the thought in the prompt stays: the model, the history, the candidates. Another user's
reason comes with that user's agreement and a leaf with its own, so the scorer meets the same kinds of
inputs in every variant and only their fit to the person differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.artifacts import read_table
from pulse_hf.evaluation.systems import System, load_thoughts, slm_scores
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from pulse_hf.reasoning.examples import Thought

OWN, NONE, OTHER, LEAF = "own", "none", "another user's", "a random leaf"

__all__ = ["LEAF", "NONE", "OTHER", "OWN", "another_users", "derangement", "random_leaves", "variants"]


def derangement(size: int, seed: int) -> list[int]:
    """A seeded permutation that leaves nothing in its place (one cycle through all).

    Raises:
        ValueError: There is nobody to swap with.

    >>> sorted(derangement(4, 0)), any(place == other for place, other in enumerate(derangement(4, 0)))
    ([0, 1, 2, 3], False)
    """
    if size < 2:
        raise ValueError(f"Another user's reason needs at least 2 decisions, found {size}")
    order = np.random.default_rng(seed).permutation(size)
    swapped = np.empty(size, dtype=int)
    swapped[order] = np.roll(order, 1)
    return [int(place) for place in swapped]


def another_users(decisions: Sequence[Decision], thoughts: Mapping[str, Thought], seed: int) -> dict[str, Thought]:
    """Every decision with the thought of another decision; each thought is used once."""
    keys = [decision.decision_id for decision in decisions]
    return {key: thoughts[keys[other]] for key, other in zip(keys, derangement(len(keys), seed), strict=True)}


def random_leaves(
    run: Path, decisions: Sequence[Decision], thoughts: Mapping[str, Thought], seed: int
) -> dict[str, Thought]:
    """Every decision with a leaf of its own tree, drawn evenly among the good nodes of its deepest level.

    These are the nodes that the thought was chosen from. A tree without a good node keeps its own thought.
    """
    from pulse_hf.reasoning.examples import Thought

    columns = ["decision_id", "depth", "status", "text", "agreement"]
    levels: dict[str, dict[int, list[Thought]]] = {}
    for row in read_table(run / "thoughts" / "trees.parquet").select(columns).to_pylist():
        if row["status"] == "ok":
            level = levels.setdefault(row["decision_id"], {}).setdefault(row["depth"], [])
            level.append(Thought(row["text"], row["agreement"]))
    generator = np.random.default_rng(seed)
    drawn = {}
    for decision in decisions:
        key = decision.decision_id
        grown = levels.get(key)
        choice = grown[max(grown)] if grown else [thoughts[key]]
        drawn[key] = choice[int(generator.integers(len(choice)))]
    return drawn


def variants(run: Path, decisions: Sequence[Decision], seed: int) -> dict[str, System]:
    """The controls of ``pulse``, by name; its own reason is the system ``pulse`` itself."""
    thoughts = load_thoughts(run)
    given: dict[str, Mapping[str, Thought]] = {
        NONE: {},
        OTHER: another_users(decisions, thoughts, seed),
        LEAF: random_leaves(run, decisions, thoughts, seed),
    }
    files = {NONE: "pulse (no reason)", OTHER: "pulse (another user's reason)", LEAF: "pulse (random leaf)"}
    return {name: System(files[name], partial(slm_scores, folder="pulse", thoughts=given[name])) for name in given}
