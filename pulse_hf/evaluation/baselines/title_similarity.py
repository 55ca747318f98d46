"""``title-similarity``: frozen encoder, candidates near the history's items in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECENT_EVENTS = 10
MAX_WEIGHT = 0.7

__all__ = ["MAX_WEIGHT", "RECENT_EVENTS", "scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """0.7 times the largest plus 0.3 times the mean cosine with the last 10 history items."""
    vectors, index = study.item_vectors, study.item_index
    result = []
    for history, candidates in zip(study.histories(decisions), study.candidates(decisions), strict=True):
        known = vectors[[index[item] - 1 for item in history.item_ids[-RECENT_EVENTS:]]]
        near = vectors[[index[item] - 1 for item in candidates]] @ known.T
        result.append((MAX_WEIGHT * near.max(axis=1) + (1 - MAX_WEIGHT) * near.mean(axis=1)).astype(float))
    return result
