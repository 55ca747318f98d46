"""HR@k, NDCG@k and MRR of one target among candidates, exact under ties, as an `evaluate` metric."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Ranking metrics of recommendation with one right item per decision: hit rate (HR@k), NDCG@k and mean reciprocal rank.
Equal scores are broken by expected value: each metric is its mean over all orders of the tied candidates. A constant
scorer gets exactly what guessing gets, and the order in which candidates are stored changes nothing.
"""

_INPUTS = """
Args:
    predictions: per decision one score per candidate, higher is better; an empty list is an invalid answer, which
        counts as a miss and stays in the denominator.
    references: per decision the place of the target among its candidates, from 0.
    k: list of cutoffs, default [1, 5, 10].
Returns:
    dict of "hr@k", "ndcg@k" for every k and "mrr", each in [0, 1].
Examples:
    >>> metric = evaluate.load("./hub_cards/metric")
    >>> metric.compute(predictions=[[0.2, 0.9, 0.1], [0.5, 0.5, 0.5]], references=[1, 0], k=[1])["hr@1"]
    0.6666666666666666
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class TieAwareRanking(evaluate.Metric):
    """One target among candidates."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], k: int | Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        cutoffs = [int(cutoff) for cutoff in ([k] if isinstance(k, int) else k)]
        if not predictions:
            raise ValueError("found no predictions, expected at least one decision")
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"k is {list(k)}, expected cutoffs of at least 1")
        rows = [
            _gains(np.asarray(scores, dtype=np.float64), int(target), number, cutoffs)
            for number, (scores, target) in enumerate(zip(predictions, references, strict=True))
        ]
        names = [*(f"{name}@{cutoff}" for cutoff in cutoffs for name in ("hr", "ndcg")), "mrr"]
        return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def _gains(scores: np.ndarray, target: int, number: int, cutoffs: list[int]) -> list[float]:
    """One decision's metrics, each the mean over the ranks that the target has in the orders of its ties."""
    if len(scores) == 0:
        return [0.0] * (2 * len(cutoffs) + 1)
    if not 0 <= target < len(scores):
        raise ValueError(f"decision {number}: target {target} is none of {len(scores)} candidates")
    if not np.isfinite(scores).all():
        raise ValueError(f"decision {number}: a score is not finite")
    above, tied = int((scores > scores[target]).sum()), int((scores == scores[target]).sum())
    ranks = np.arange(above + 1, above + tied + 1)
    gains = []
    for cutoff in cutoffs:
        gains += [(ranks <= cutoff).mean(), np.where(ranks <= cutoff, 1 / np.log2(ranks + 1), 0.0).mean()]
    return [*gains, (1 / ranks).mean()]
