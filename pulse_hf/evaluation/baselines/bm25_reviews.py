"""``bm25-reviews``: candidates whose buyers wrote in training what the person writes (bm25s).

The control for what rationales make of reviews: it reads the same words of the same people and nothing is fitted. An
item's document is all that was written of it in training events, as in review-based recommenders (McAuley and
Leskovec, 2013); the query is what the person wrote of the last 10 choices, never of the candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pulse_hf.evaluation.baselines.bm25 import RECENT_EVENTS, matched
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """BM25 of each candidate's training reviews for the person's own last 10 reviews.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    written: dict[str, list[str]] = {item_id: [] for item_id in study.items}
    for sequence in study.sequences.values():
        events = sequence.training()
        for item_id, review in zip(events.item_ids, events.reviews, strict=True):
            written[item_id].append(review)
    queries = [" ".join(history.reviews[-RECENT_EVENTS:]) for history in study.histories(decisions)]
    return matched(study, decisions, [" ".join(texts) for texts in written.values()], queries)
