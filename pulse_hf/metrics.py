"""Ground floor: rank metrics of one target among candidates, exact under ties.

Equal scores are broken by *expected value*: each metric is its mean over all orders of the tied
candidates, in closed form. A system that gives every candidate the same score therefore gets exactly
what guessing gets, and no system gains from the order in which candidates are stored. Sampled metrics
(1 target among N drawn negatives) are not the metrics of the full catalogue (Krichene & Rendle, KDD 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
NDCG_CUTOFF = 10
METRICS = (*(f"hr@{k}" for k in CUTOFFS), f"ndcg@{NDCG_CUTOFF}", "mrr")

__all__ = ["CUTOFFS", "METRICS", "NDCG_CUTOFF", "place_metrics", "rank_metrics", "target_places"]


def target_places(
    scores: Sequence[NDArray[np.floating] | None],
    targets: Sequence[int],
    *,
    system: str,
    decision_ids: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the target stands: how many candidates beat it, and how many share its score.

    Args:
        scores: Per decision one score per candidate, higher is better; ``None`` for an invalid answer.
        targets: Per decision the target's place in its scores.
        system: Name of the system, for errors.
        decision_ids: Names of the decisions, for errors.

    Returns:
        ``above`` (n,) candidates with a strictly higher score, and ``tied`` (n,) candidates with the
        target's score, the target included; ``tied`` is 0 where the answer was invalid.

    Raises:
        ValueError: The lists differ in length, a score is not finite, or a target is out of range.

    >>> above, tied = target_places([np.array([3.0, 1.0, 1.0]), None], [1, 0], system="s", decision_ids=["a", "b"])
    >>> above.tolist(), tied.tolist()
    ([1, 0], [2, 0])
    """
    if not len(scores) == len(targets) == len(decision_ids):
        raise ValueError(
            f"{system}: {len(scores)} rows of scores, {len(targets)} targets and {len(decision_ids)} decisions; "
            "every decision needs one of each (None for an invalid answer)"
        )
    above = np.zeros(len(scores), dtype=np.int64)
    tied = np.zeros(len(scores), dtype=np.int64)
    for row, (values, target, decision_id) in enumerate(zip(scores, targets, decision_ids, strict=True)):
        if values is None:
            continue
        values = np.asarray(values)
        if values.ndim != 1 or not 0 <= target < len(values):
            raise ValueError(
                f"{system}, decision {decision_id}: scores of shape {values.shape} hold no candidate number {target}"
            )
        finite = np.isfinite(values)
        if not finite.all():
            place = int(np.argmin(finite))
            raise ValueError(
                f"{system}, decision {decision_id}: score {values[place]} of candidate {place} is not finite"
            )
        above[row] = np.count_nonzero(values > values[target])
        tied[row] = np.count_nonzero(values == values[target])
    return above, tied


def rank_metrics(
    scores: Sequence[NDArray[np.floating] | None],
    targets: Sequence[int],
    *,
    system: str = "system",
    decision_ids: Sequence[str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """HR@1/5/10, NDCG@10 and MRR of every decision, expected over random tie-breaks.

    With ``a`` candidates above the target and ``t`` sharing its score (itself included), its rank is
    uniform on ``a+1 .. a+t``; each metric is the mean over these ranks. An invalid answer (``None``) is a
    miss: 0 in every metric, and it stays in the denominator.

    Args:
        scores: Per decision one score per candidate, higher is better; ``None`` for an invalid answer.
        targets: Per decision the target's place in its scores.
        system: Name of the system, for errors.
        decision_ids: Names of the decisions, for errors; their numbers if not given.

    Returns:
        Name of each metric in ``METRICS`` to an array (n,) in [0, 1].

    Raises:
        ValueError: A score is not finite (the system and the decision are named), or lengths differ.

    Example:
        Constant scores over C candidates give HR@k = k/C and MRR = H(C)/C:

        >>> constant = rank_metrics([np.zeros(4)], [2])
        >>> constant["hr@1"].tolist(), constant["hr@5"].tolist()
        ([0.25], [1.0])
        >>> bool(np.isclose(constant["mrr"][0], (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4))
        True
        >>> rank_metrics([np.array([0.1, 0.9]), None], [1, 0])["mrr"].tolist()
        [1.0, 0.0]
    """
    names = [str(row) for row in range(len(scores))] if decision_ids is None else decision_ids
    return place_metrics(*target_places(scores, targets, system=system, decision_ids=names))


def place_metrics(above: NDArray[np.int64], tied: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The metrics of :func:`rank_metrics` from what :func:`target_places` found.

    Args:
        above: (n,) candidates above the target.
        tied: (n,) candidates with its score, itself included; 0 for a miss.

    Example:
        >>> place_metrics(np.array([0, 1]), np.array([2, 0]))["hr@1"].tolist()
        [0.5, 0.0]
    """
    ranks = np.arange(1, int((above + tied).max(initial=0)) + 1)
    gains = {f"hr@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    gains[f"ndcg@{NDCG_CUTOFF}"] = np.where(ranks <= NDCG_CUTOFF, 1 / np.log2(ranks + 1), 0.0)
    gains["mrr"] = 1 / ranks
    return {name: _mean_over_ties(gains[name], above, tied) for name in METRICS}


def _mean_over_ties(
    gain_of_rank: NDArray[np.float64], above: NDArray[np.int64], tied: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(gain_of_rank):
        return np.zeros(len(above))
    # Without ties the gain itself, not a difference of running sums: exact to the last digit.
    total = np.concatenate([[0.0], np.cumsum(gain_of_rank)])
    mean = (total[above + tied] - total[above]) / np.maximum(tied, 1)
    return np.where(tied == 1, gain_of_rank[np.minimum(above, len(gain_of_rank) - 1)], mean)
