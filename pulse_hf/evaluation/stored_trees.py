"""Whether stored thoughts are what their stored trees give: the leaf, its words, and how well each node agrees."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from typing import Any

from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.regenerate import STORED_SLACK
from pulse_hf.evaluation.stage_inputs import thoughts_read
from pulse_hf.reasoning.agreement import agreement_with, load_spaces
from pulse_hf.reasoning.tree_of_thought import NO_NODE, Node, TreeSettings, leaf_of
from pulse_hf.schema import Decision

_EQUAL = 1e-6  # a likelihood is kept in half of its digits

__all__ = ["wrong_agreements", "wrong_choices"]


def wrong_choices(finished: FinishedRun) -> list[str]:
    """Stored thoughts of which the leaf is not the one to be chosen from the stored tree, or is told otherwise."""
    settings, seed = _tree_settings(finished), finished.settings("thoughts")["seed"]
    pulled, problems = finished.pulled("thoughts"), []
    for row in finished.rows("thoughts/thoughts.parquet"):
        key, nodes = row["decision_id"], finished.trees.get(row["decision_id"], [])
        if pulled and not nodes:  # a tree that quotes a review is not published, its thought may be
            continue
        told = {node.number: (node.text, node.agreement) for node in nodes} | {NO_NODE: ("", None)}
        if told.get(row["leaf"]) != (row["reason"], row["agreement"]):
            problems.append(f"{key}: its reason or its agreement is not that of the chosen leaf of its tree")
        elif not _may_be_chosen(row["leaf"], nodes, settings, key, seed, pulled=pulled):
            problems.append(f"{key}: its leaf is not the one that its settings choose from its tree")
    return problems


def wrong_agreements(finished: FinishedRun, decisions: Series[Decision]) -> list[str]:
    """Decisions with a stored node whose agreement is not that of its words and the behaviour before the target."""
    stored = [one for one in decisions if one.decision_id in finished.trees]
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    inputs = thoughts_read(finished, by_user, stored, finished.stored_lent)
    seed = finished.settings("thoughts")["seed"]
    evaluate = agreement_with([(one.decision, one.behaviour) for one in inputs], load_spaces(finished.run), seed)
    nodes = [
        (one.decision_id, node) for one in stored for node in finished.trees[one.decision_id] if node.status == "ok"
    ]
    values = evaluate([(key, node.text) for key, node in nodes])
    wrong = {
        key: None
        for (key, node), value in zip(nodes, values, strict=True)
        if node.agreement is None or abs(node.agreement - value) > STORED_SLACK
    }
    return [f"{key}: another agreement is stored than its reasons have with its history" for key in wrong]


def _may_be_chosen(
    leaf: int, nodes: Series[Node], settings: TreeSettings, key: str, seed: int, *, pulled: bool
) -> bool:
    best = leaf_of(nodes, settings, key, seed)
    if leaf == best or NO_NODE in (leaf, best):
        return leaf == best
    likelihood = settings.selection == "likelihood"
    if not (pulled or likelihood):
        return False
    if settings.selection == "random":  # by a hash of the person's name, which a pulled one has not any more
        return True
    chosen, other = nodes[leaf], nodes[best]
    mine, its = ((one.log_likelihood if likelihood else one.agreement) for one in (chosen, other))
    equal = mine == its or (mine is not None and its is not None and abs(mine - its) <= _EQUAL)
    return bool(equal and chosen.depth == other.depth and chosen.status == "ok")


def _tree_settings(finished: FinishedRun) -> TreeSettings:
    values: Mapping[str, Any] = finished.settings("thoughts")
    return TreeSettings(*(values[name] for name in ("depth", "width", "keep", "selection")))
