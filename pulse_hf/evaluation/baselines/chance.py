"""``random``: every candidate alike, which tie-aware metrics turn into the exact value of guessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Zeros: the expected value of a random order, without the noise of drawing one."""
    return [np.zeros(len(candidates)) for candidates in study.candidates(decisions)]
