"""The worth of a reason: the fitted ``pulse`` with its own one, none, another user's, or one that is worth less.

Everything but the thought in the prompt stays: the model, the history, the candidates. Another user's
reason comes with that user's agreement and a leaf with its own, so the scorer meets the same kinds of
inputs in every variant and only their fit to the person differs. The other reasons of a tree are the paper's ablations
of what chooses among them (its tables A and B), at inference: the base reason without a tree, the likeliest leaf, the
leaf that an untuned encoder finds nearest to the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import read_table, settings_of
from pulse_hf.evaluation.our_scores import slm_scores
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.score_book import System
from pulse_hf.reasoning.examples import load_thoughts
from pulse_hf.schema import Decision, stable_hash

if TYPE_CHECKING:
    from pulse_hf.reasoning.examples import Thought

OWN, NONE, OTHER, LEAF = "own", "none", "another user's", "a random leaf"
SHUFFLED = "its words shuffled"
BASE, LIKELY, NEAR = "the base reason", "the likeliest leaf", "the untuned encoder's leaf"

Trees = dict[str, list[dict[str, Any]]]

__all__ = [
    "BASE",
    "LEAF",
    "LIKELY",
    "NEAR",
    "NONE",
    "OTHER",
    "OWN",
    "SHUFFLED",
    "another_users",
    "base_reasons",
    "derangement",
    "likeliest_leaves",
    "nearest_leaves",
    "random_leaves",
    "score_file",
    "shuffled_words",
    "trees_of",
    "variants",
]


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


def shuffled_words(decisions: Sequence[Decision], thoughts: Mapping[str, Thought], seed: int) -> dict[str, Thought]:
    """Every decision with the words of its own reason in a drawn order, and the agreement of the reason as it was.

    What is left of a reason is the words it names; whether they make a sentence is gone.
    """
    shuffled = {}
    for decision in decisions:
        thought = thoughts[decision.decision_id]
        words = (thought.reason or "").split()
        order = np.random.default_rng(stable_hash("shuffled", seed, decision.decision_id)).permutation(len(words))
        shuffled[decision.decision_id] = replace(thought, reason=" ".join(words[place] for place in order) or None)
    return shuffled


def random_leaves(grown: Trees, decisions: Sequence[Decision], seed: int) -> dict[str, Thought]:
    """Every decision with a leaf of its own tree, drawn evenly among those that its thought was chosen from."""
    generator = np.random.default_rng(seed)
    return _of_trees(grown, decisions, lambda nodes, _: nodes[int(generator.integers(len(nodes)))])


def base_reasons(grown: Trees, decisions: Sequence[Decision]) -> dict[str, Thought]:
    """Every decision with the root of its tree; with no reason where that one failed."""
    roots = {key: [node for node in nodes if node["depth"] == 0] for key, nodes in grown.items()}
    return _of_trees(roots, decisions, lambda nodes, _: nodes[0])


def likeliest_leaves(grown: Trees, decisions: Sequence[Decision]) -> dict[str, Thought]:
    """Every decision with the leaf that the language model itself finds likeliest."""
    return _of_trees(grown, decisions, lambda nodes, _: max(nodes, key=lambda node: node["log_likelihood"]))


def nearest_leaves(
    grown: Trees, decisions: Sequence[Decision], behaviours: Sequence[str], encoder: str
) -> dict[str, Thought]:
    """Every decision with the leaf nearest to its behaviour by an encoder that was never tuned.

    Args:
        grown: Usable nodes by decision id.
        decisions: Whose.
        behaviours: The text b_u of each decision.
        encoder: Name of the encoder.
    """
    from pulse_hf.models.text_encoder import encode_texts

    leaves = [_leaves(grown.get(decision.decision_id, [])) for decision in decisions]
    texts = [node["text"] for nodes in leaves for node in nodes]
    vectors = encode_texts([*behaviours, *texts], encoder, max_tokens=128)
    rows, place = iter(vectors[len(behaviours) :]), {}
    for decision, nodes, behaviour in zip(decisions, leaves, vectors[: len(behaviours)], strict=True):
        near = [float(next(rows) @ behaviour) for _ in nodes]
        place[decision.decision_id] = int(np.argmax(near)) if near else 0
    return _of_trees(grown, decisions, lambda nodes, key: nodes[place[key]])


def trees_of(run: Path) -> Trees:
    """The usable nodes of every tree of a run, by decision id."""
    columns = ["decision_id", "depth", "status", "text", "agreement", "log_likelihood"]
    grown: Trees = {}
    for row in read_table(run / "thoughts" / "trees.parquet").select(columns).to_pylist():
        if row["status"] == "ok":
            grown.setdefault(row["decision_id"], []).append(row)
    return grown


def _leaves(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The good nodes of the deepest level that has any: what a thought is chosen from."""
    deepest = max((node["depth"] for node in nodes), default=0)
    return [node for node in nodes if node["depth"] == deepest]


def _of_trees(
    grown: Trees, decisions: Sequence[Decision], choose: Callable[[list[dict[str, Any]], str], dict[str, Any]]
) -> dict[str, Thought]:
    from pulse_hf.reasoning.examples import Thought

    chosen = {}
    for decision in decisions:
        nodes = _leaves(grown.get(decision.decision_id, []))
        if nodes:
            node = choose(nodes, decision.decision_id)
            chosen[decision.decision_id] = Thought(node["text"], node["agreement"])
    return chosen


def variants(study: Study, decisions: Sequence[Decision], seed: int, *, ablations: bool) -> dict[str, System]:
    """The controls of ``pulse``, by name; its own reason is the system ``pulse`` itself.

    Args:
        study: Shared data.
        decisions: What is scored.
        seed: Of swapped reasons and drawn leaves.
        ablations: Also the base reason, the untuned encoder's leaf and, where the engine tells likelihoods, the
            likeliest one.
    """
    thoughts, grown = load_thoughts(study.run), trees_of(study.run)
    given: dict[str, Mapping[str, Thought]] = {
        NONE: {},
        OTHER: another_users(decisions, thoughts, seed),
        SHUFFLED: shuffled_words(decisions, thoughts, seed),
        LEAF: random_leaves(grown, decisions, seed),
    }
    if ablations:
        behaviours = [study.shared.told(history, study.items) for history in study.histories(decisions)]
        encoder = settings_of(study.run / "sequential")["encoder"]
        given |= {
            BASE: base_reasons(grown, decisions),
            NEAR: nearest_leaves(grown, decisions, behaviours, encoder),
        }
        # An engine without a language model finds every text equally likely.
        if any(node["log_likelihood"] for nodes in grown.values() for node in nodes):
            given[LIKELY] = likeliest_leaves(grown, decisions)
    return {
        name: System(score_file(name), partial(slm_scores, folder="pulse", thoughts=given[name])) for name in given
    }


def score_file(name: str) -> str:
    """Under which name a variant's scores are kept."""
    return f"pulse with {name}"
