"""``item-knn``: items chosen by the same people, cosine over training events (Sarwar et al. 2001)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.evaluation.baselines import popularity
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Far below any difference of cosines that means something, so popularity only decides ties.
_TIE_BREAK = 1e-6

__all__ = ["cosines", "scores"]


def cosines(study: Study) -> Any:
    """Cosine of every two items' sets of training users.

    Returns:
        Sparse (num_items + 1, num_items + 1), row and column 0 empty; 1 on the diagonal of items that
        were ever chosen, so that a repeated item counts as similar to itself.
    """
    from scipy import sparse

    rows, columns = [], []
    for row, sequence in enumerate(study.sequences.values()):
        chosen = {study.item_index[item] for item in sequence.training().item_ids}
        rows += [row] * len(chosen)
        columns += sorted(chosen)
    shape = (len(study.sequences), len(study.items) + 1)
    chose = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    users = np.asarray(chose.sum(axis=0)).ravel()
    unit = sparse.diags_array(1 / np.sqrt(np.maximum(users, 1)))
    return (unit @ (chose.T @ chose) @ unit).tocsr()


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Sum of each candidate's cosines with the distinct items of the history; ties by popularity.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    similar = cosines(study)
    most = 1 + max(study.training_counts.values(), default=0)
    index = study.item_index
    result = []
    rows = zip(
        study.histories(decisions), study.candidates(decisions), popularity.scores(study, decisions), strict=True
    )
    for history, candidates, popular in rows:
        known = sorted({index[item] for item in history.item_ids})
        total = np.asarray(similar[known].sum(axis=0)).ravel()
        result.append(total[[index[item] for item in candidates]] + _TIE_BREAK * popular / most)
    return result
