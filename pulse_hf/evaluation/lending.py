"""Similar users of a finished run and what they lend, found anew for the leak audit."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from typing import Any

from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.retrieval.similar_users import NO_USER, lend_items, lendable, neighbours
from pulse_hf.schema import Decision, Sequence, fold_of

__all__ = ["lend_again", "lent_items"]


def lent_items(
    finished: FinishedRun, sequences: Series[Sequence], decisions: Series[Decision]
) -> dict[str, tuple[Any, ...]]:
    """Similar users found anew by the fitted models, and what they lend.

    Training decisions are served by the model that was fitted without their fold.

    Returns:
        Decision id to ``(lent item ids, neighbours' user ids, cosines)``.
    """
    settings = finished.settings("sequential")
    parts: dict[str, list[Decision]] = {}
    for decision in decisions:
        fold = fold_of(decision.user_id, settings["num_folds"], settings["seed"])
        parts.setdefault(f"sasrec-fold-{fold}" if decision.split == "train" else "sasrec", []).append(decision)
    found: dict[str, tuple[Any, ...]] = {}
    for model, mine in sorted(parts.items()):
        found.update(_lent_by(finished, sequences, mine, model, settings))
    return found


def _lent_by(
    finished: FinishedRun,
    sequences: Series[Sequence],
    decisions: Series[Decision],
    model: str,
    settings: Mapping[str, Any],
) -> dict[str, tuple[Any, ...]]:
    from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel

    index = {item_id: number for number, item_id in enumerate(finished.items, start=1)}
    by_user = {sequence.user_id: sequence for sequence in sequences}
    fitted = PulseSASRecModel.from_pretrained(str(finished.run / "sequential" / model)).eval()

    def vectors(histories: Series[Sequence]) -> Any:
        return fitted.user_vectors([[index[item] for item in history.item_ids] for history in histories]).numpy()

    seen = [by_user[decision.user_id].before(decision.position) for decision in decisions]
    users = [user_id for user_id, sequence in by_user.items() if sequence.num_train]
    pool = vectors([by_user[user_id].training() for user_id in users])
    asking = [decision.user_id for decision in decisions]
    places, cosines = neighbours(vectors(seen), asking, pool, users, settings["num_neighbours"])
    lenders = lendable(sequences)
    found = {}
    for decision, row, near in zip(decisions, places.tolist(), cosines.tolist(), strict=True):
        others = [users[place] for place in row if place != NO_USER]
        near = near[: len(others)]
        lent = lend_again(by_user[decision.user_id], decision, others, near, lenders, settings["neighbour_items"])
        found[decision.decision_id] = (lent, others, near)
    return found


def lend_again(
    sequence: Sequence,
    decision: Decision,
    user_ids: Series[str],
    cosines: Series[float],
    lenders: Mapping[str, Sequence],
    max_items: int,
) -> list[str]:
    """What given neighbours lend to a decision."""
    time = sequence.timestamps[decision.position] if sequence.timestamps else None
    history = sequence.before(decision.position).item_ids
    return lend_items(user_ids, cosines, lenders, history=history, before=time, max_items=max_items)
