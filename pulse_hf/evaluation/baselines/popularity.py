"""``popularity``: how often an item was chosen in training events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["log_popularity", "scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """The number of training events of each candidate.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    counts = study.training_counts
    return [np.array([counts[item] for item in candidates], dtype=float) for candidates in study.candidates(decisions)]


def log_popularity(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """log(1 + training events) of each candidate.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    counts = study.training_counts
    return [np.log1p([float(counts[item]) for item in candidates]) for candidates in study.candidates(decisions)]
