"""``bm25``: candidates whose titles share rare words with the history's titles (bm25s)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECENT_EVENTS = 10

__all__ = ["RECENT_EVENTS", "matched", "scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """BM25 (Lucene's form) of each candidate's title for the words of the last 10 titles of the history.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    queries = [
        " ".join(study.items[item].title for item in history.item_ids[-RECENT_EVENTS:])
        for history in study.histories(decisions)
    ]
    return matched(study, decisions, [item.title for item in study.items.values()], queries)


def matched(
    study: Study, decisions: Sequence[Decision], documents: Sequence[str], queries: Sequence[str]
) -> list[NDArray[np.float64]]:
    """BM25 of each candidate's document for the decision's query; 0 where either has no word.

    Args:
        study: Shared data.
        decisions: What to score.
        documents: One for each item, in catalogue order.
        queries: One for each decision.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index, whatever level others have
    index, candidates_of = study.item_index, study.candidates(decisions)
    told = bm25s.tokenize(documents, show_progress=False)
    if not any(told.ids):  # nobody wrote a word; bm25s takes no empty corpus
        return [np.zeros(len(candidates)) for candidates in candidates_of]
    retriever = bm25s.BM25()
    retriever.index(told, show_progress=False)
    words = bm25s.tokenize(queries, return_ids=False, show_progress=False)
    result = []
    for query, candidates in zip(words, candidates_of, strict=True):
        # A text may leave no word (numbers, single letters); bm25s takes no empty query.
        row = retriever.get_scores(query) if query else np.zeros(len(documents))
        result.append(row[[index[item] - 1 for item in candidates]].astype(float))
    return result
