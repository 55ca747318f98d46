"""``repeat``: what the person chose before, then what is popular."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.baselines import popularity
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """1 for an item of the history, 0 for others; ties (all, where repeats were removed) by popularity.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    most = 1 + max(study.training_counts.values(), default=0)
    seen = [set(history.item_ids) for history in study.histories(decisions)]
    rows = zip(study.candidates(decisions), seen, popularity.scores(study, decisions), strict=True)
    return [np.array([item in known for item in candidates]) + popular / most for candidates, known, popular in rows]
