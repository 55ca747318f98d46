"""``gated``: a text model for rare items and SASRec for popular ones, by the item's training events.

The gate of CLAM-Rec (an independent re-run of A-LLMRec) is ``events / (events + mean events per item)``. Its two sides
are standardised by constants of validation and weighed by two numbers fitted there, instead of by each request's own
candidates. It depends on the item alone, so no candidate's score depends on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pulse_hf.evaluation.fusion.fusion import events_shares
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pulse_hf.evaluation.fusion.stacker import Rows, Stacker

PARTS = ("sasrec", "encoder-tuned")

__all__ = ["PARTS", "sides"]


def sides(
    study: Study, decisions: Sequence[Decision], rows: Mapping[str, Rows], constants: Stacker
) -> dict[str, list[NDArray[np.float64]]]:
    """Both systems' standardised scores, each times its share of the gate.

    Args:
        study: Shared data.
        decisions: What is scored.
        rows: Scores of SASRec and of the text model, by name.
        constants: Means and scales of both, in the order of :data:`PARTS`.
    """
    shares = events_shares(study, decisions)
    known, text = (
        [(row - mean) / scale for row in rows[name]]
        for name, mean, scale in zip(PARTS, constants.means, constants.scales, strict=True)
    )
    return {
        PARTS[0]: [share * row for share, row in zip(shares, known, strict=True)],
        PARTS[1]: [(1 - share) * row for share, row in zip(shares, text, strict=True)],
    }
