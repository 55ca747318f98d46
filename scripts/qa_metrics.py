"""What is measured: answers by exact match and F1, paragraphs by where the two supporting ones stand.

Normalisation and F1 are HotpotQA's own (Yang et al. 2018, after SQuAD). Ties are broken by expected value, as in
``pulse_hf.metrics``: a ranker that says nothing gets exactly what chance gets.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pulse_hf.metrics import rank_metrics

RANK_METRICS = ("selection", "recall@2", "both@2", "mrr")
_TOP = 2
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_WHOLE = ("yes", "no", "noanswer")


def normalised(answer: str) -> str:
    """Lower case without punctuation, articles and spare spaces.

    >>> normalised("The  North-Atlantic Conference.")
    'northatlantic conference'
    """
    plain = "".join(one for one in answer.lower() if one not in string.punctuation)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def exact_match(answer: str, right: str) -> float:
    """1 if the normalised answers are equal, else 0."""
    return float(normalised(answer) == normalised(right))


def f1(answer: str, right: str) -> float:
    """Overlap of the answers' words, in [0, 1]; yes and no have to be met exactly.

    >>> f1("the red house", "a house"), f1("yes", "yes it is")
    (0.6666666666666666, 0.0)
    """
    given, wanted = normalised(answer), normalised(right)
    if given != wanted and (given in _WHOLE or wanted in _WHOLE):
        return 0.0
    words, right_words = given.split(), wanted.split()
    shared = sum((Counter(words) & Counter(right_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(right_words)
    return 2 * precision * recall / (precision + recall)


def ranking_quality(
    paragraphs: NDArray[np.float64], supporting: Sequence[bool], candidates: NDArray[np.float64], of: Sequence[int]
) -> tuple[float, ...]:
    """How one question's ranking finds the two supporting paragraphs.

    Args:
        paragraphs: (paragraphs,) scores, higher is better.
        supporting: (paragraphs,), two of them true.
        candidates: (candidates,) scores of the rationales.
        of: (candidates,) the paragraph of each.

    Returns:
        As ``RANK_METRICS``: whether the best rationale is of a supporting paragraph; share of supporting paragraphs
        among the first two; whether both are; mean reciprocal rank of the two (at most 0.75).

    >>> ranking_quality(np.array([3.0, 2, 1]), [True, False, True], np.array([1.0, 2]), [1, 2])
    (1.0, 0.5, 0.0, 0.6666666666666666)
    >>> ranking_quality(np.zeros(10), [True, True] + [False] * 8, np.zeros(10), range(10))[:2]
    (0.2, 0.2)
    """
    best = np.flatnonzero(candidates == candidates.max())
    selection = float(np.mean([supporting[of[one]] for one in best]))
    places = np.flatnonzero(supporting).tolist()
    above = [int((paragraphs > paragraphs[one]).sum()) for one in places]
    tied = [int((paragraphs == paragraphs[one]).sum()) for one in places]
    chances = [min(1.0, max(0, _TOP - a) / t) for a, t in zip(above, tied, strict=True)]
    ranks = rank_metrics([paragraphs] * len(places), places)["mrr"]
    return selection, float(np.mean(chances)), _both(paragraphs[places], above, tied, chances), float(ranks.mean())


def _both(scores: NDArray[np.float64], above: list[int], tied: list[int], chances: list[float]) -> float:
    if scores[0] != scores[1]:
        return chances[0] * chances[1]  # orders within two groups of ties are independent
    room = max(0, _TOP - above[0])
    return min(1.0, room * (room - 1) / (tied[0] * (tied[0] - 1)))
