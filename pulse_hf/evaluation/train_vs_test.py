"""Train like test: are the rows that the scorer was tuned on like those it is tested on?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import seed_of
from pulse_hf.evaluation.baselines import sasrec
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.statistics import intervals
from pulse_hf.metrics import rank_metrics
from pulse_hf.schema import Decision, fold_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.reasoning.examples import Thought

__all__ = ["train_vs_test"]


def train_vs_test(study: Study, thoughts: Mapping[str, Thought], *, seed: int) -> dict[str, Any]:
    """Mean agreement, SASRec's HR@1 and that of shared reasons alone on tuning, validation and test rows.

    Tuning rows are judged by models of the other fold, which never saw them; the SASRec of all users is
    shown beside it, to tell how much too good an uncrossed score would be. Nothing is tuned on votes of tuning
    rows, where their space has seen the choice: what votes count is fitted on validation rows.

    Args:
        study: Shared data.
        thoughts: Thoughts of all splits by decision id.
        seed: Seed of the resamples.

    Returns:
        Name of each kind of rows to ``{decisions, agreement, sasrec_hr@1, shared_reasons_hr@1}``, all with
        intervals, each only where it means something; the last one only where the scorer weighs votes.
    """
    votes = _votes(study)
    tuning = [d for d in study.split("train") if d.decision_id in thoughts]
    found = {}
    if tuning:
        crossed, whole = _cross_fitted(study, tuning), sasrec.scores(study, tuning)
        agreement = _agreement(tuning, thoughts, seed)
        found["tuning rows, models of the other fold"] = agreement | _sasrec(study, tuning, crossed, seed)
        found["tuning rows, SASRec of all users"] = _sasrec(study, tuning, whole, seed)
    for split in ("validation", "test"):
        decisions = study.split(split)
        if decisions:
            row = _agreement(decisions, thoughts, seed)
            row |= _sasrec(study, decisions, sasrec.scores(study, decisions), seed)
            if votes is not None:
                row["shared_reasons_hr@1"] = _by_user(decisions, votes(decisions, thoughts), seed)
            found[f"{split} rows"] = row
    return found


def _votes(study: Study) -> Callable[[Sequence[Decision], Mapping[str, Thought]], NDArray[np.float64]] | None:
    """HR@1 of the votes of shared reasons alone, as the tuned scorer is given them; None if it is not."""
    from pulse_hf.models.scorer.adapter import read_record
    from pulse_hf.reasoning.examples import PromptShape, features_of_sets

    shape = PromptShape.from_dict(read_record(study.run / "recommender" / "pulse").prompt)
    if shape.shared_temperature is None:
        return None
    shape = replace(shape, title_agreement=False)  # shared reasons alone

    def hits(decisions: Sequence[Decision], thoughts: Mapping[str, Thought]) -> NDArray[np.float64]:
        sets = [study.sets[decision.decision_id] for decision in decisions]
        votes = features_of_sets(sets, study.sequences, study.items, thoughts, shape, study.shared)
        rows = [np.array(one, dtype=float).sum(1) for one in votes]
        return rank_metrics(rows, study.targets(decisions), system="shared reasons")["hr@1"]

    return hits


def _cross_fitted(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    folders = sorted((study.run / "sequential").glob("sasrec-fold-*"))
    if not folders:
        return sasrec.scores(study, decisions)
    # The folds were dealt with the seed of the stage that fitted them.
    seed = seed_of(study.run / "sequential")
    fold = [fold_of(decision.user_id, len(folders), seed) for decision in decisions]
    result: dict[str, NDArray[np.float64]] = {}
    for number in range(len(folders)):
        own = [decision for decision, where in zip(decisions, fold, strict=True) if where == number]
        rows = sasrec.scores(study, own, model=f"sasrec-fold-{number}")
        result.update({decision.decision_id: row for decision, row in zip(own, rows, strict=True)})
    return [result[decision.decision_id] for decision in decisions]


def _agreement(decisions: Sequence[Decision], thoughts: Mapping[str, Thought], seed: int) -> dict[str, Any]:
    measured = [thoughts[d.decision_id].agreement if d.decision_id in thoughts else None for d in decisions]
    values = np.array([np.nan if value is None else value for value in measured], dtype=float)
    return {"agreement": _by_user(decisions, values, seed)}


def _sasrec(
    study: Study, decisions: Sequence[Decision], logits: Sequence[NDArray[np.float64]], seed: int
) -> dict[str, Any]:
    hits = rank_metrics(
        logits, study.targets(decisions), system="sasrec", decision_ids=[d.decision_id for d in decisions]
    )
    return {"decisions": len(decisions), "sasrec_hr@1": _by_user(decisions, hits["hr@1"], seed)}


def _by_user(decisions: Sequence[Decision], values: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """A user may have several tuning rows, so the interval is over users' means."""
    grouped: dict[str, list[float]] = {}
    for decision, value in zip(decisions, values, strict=True):
        if not np.isnan(value):
            grouped.setdefault(decision.user_id, []).append(float(value))
    means = np.array([np.mean(row) for row in grouped.values()], dtype=float).reshape(-1, 1)
    return asdict(intervals(means, seed=seed)[0])
