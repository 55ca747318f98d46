"""``bm25``: candidates whose titles share rare words with the history's titles (bm25s)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECENT_EVENTS = 10

__all__ = ["RECENT_EVENTS", "scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """BM25 (Lucene's form) of each candidate's title for the words of the last 10 titles of the history.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    import bm25s

    titles = [item.title for item in study.items.values()]
    index = study.item_index
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(titles, show_progress=False), show_progress=False)
    queries = [
        " ".join(study.items[item].title for item in history.item_ids[-RECENT_EVENTS:])
        for history in study.histories(decisions)
    ]
    words = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    result = []
    for query, candidates in zip(words, study.candidates(decisions), strict=True):
        # Titles may leave no word (numbers, single letters); bm25s takes no empty query.
        row = retriever.get_scores(query) if query else np.zeros(len(titles))
        result.append(row[[index[item] - 1 for item in candidates]].astype(float))
    return result
