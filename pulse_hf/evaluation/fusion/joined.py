"""Systems that join other systems' scores by a fit on validation: the fusions and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.fusion import gated
from pulse_hf.evaluation.fusion.fusion import events_shares, fit_fusion
from pulse_hf.evaluation.fusion.stacker import fit_stacker
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.score_book import Fitted, ScoreBook, System
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.evaluation.score_book import Scores

__all__ = ["gated_scores", "joining", "rows_of_parts", "stacked_scores"]


def joining(name: str, parts: Sequence[System], score: Scores) -> System:
    """A system that rests on all that its parts rest on."""
    stages = dict.fromkeys(stage for one in parts for stage in one.stages)
    models = dict.fromkeys(path for one in parts for path in one.models)
    return System(name, score, tuple(stages), tuple(models), tuple(one.name for one in parts))


def stacked_scores(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, parts: Sequence[System], l2: float
) -> Fitted:
    """Fit on validation, score the decisions' split from the parts' kept scores."""
    validation = study.split("validation")
    rows, gates = rows_of_parts(book, parts, "validation"), events_shares(study, validation)
    fitted = fit_fusion(rows, gates, study.targets(validation), l2=l2)
    if not decisions:
        return Fitted([], fitted.record())
    rows, gates = rows_of_parts(book, parts, decisions[0].split), events_shares(study, decisions)
    return Fitted(fitted.scores(rows, gates), fitted.record())


def gated_scores(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, parts: Sequence[System], l2: float
) -> Fitted:
    """Two fits on validation: the parts' constants, then what the gate's two sides count."""
    validation = study.split("validation")
    rows, targets = rows_of_parts(book, parts, "validation"), study.targets(validation)
    constants = fit_stacker(rows, targets, l2=l2)
    fitted = fit_stacker(gated.sides(study, validation, rows, constants), targets, l2=l2)
    rows = rows_of_parts(book, parts, decisions[0].split) if decisions else {name: [] for name in gated.PARTS}
    return Fitted(fitted.scores(gated.sides(study, decisions, rows, constants)), asdict(fitted))


def rows_of_parts(book: ScoreBook, parts: Sequence[System], split: str) -> dict[str, list[NDArray[np.float64]]]:
    """Scores of a split by part.

    Args:
        book: Where they are kept.
        parts: What is joined.
        split: ``validation`` or ``test``.

    Raises:
        ValueError: A part has an invalid answer.
    """
    ingredients = {}
    for part in parts:
        rows = book.rows(part, split)
        whole = [row for row in rows if row is not None]
        if len(whole) != len(rows):
            raise ValueError(f"{part.name} has {len(rows) - len(whole)} invalid answers and cannot be an ingredient")
        ingredients[part.name] = whole
    return ingredients
