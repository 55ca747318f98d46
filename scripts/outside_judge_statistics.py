"""How ``outside_judge.py`` measures: ranks within a group, best of n, retrieval, and floors that know no person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer

from pulse_hf.metrics import rank_metrics, target_places

Array = NDArray[np.float64]
RIDGES = (1e1, 1e2, 1e3, 1e4)


def spearman(first: Array, second: Array) -> float:
    """Rank correlation; 0 where one side is constant, for it ranks nothing.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm else 0.0


def spearman_given(first: Array, second: Array, third: Array) -> float:
    """Partial rank correlation of two things at equal ranks of a third; 0 where that leaves nothing."""
    between, one, other = spearman(first, second), spearman(first, third), spearman(second, third)
    left = (1 - one**2) * (1 - other**2)
    return (between - one * other) / float(np.sqrt(left)) if left > 1e-12 else 0.0


def best_reward(scores: Array, rewards: Array) -> float:
    """Reward of the rationale with the highest score, expected over ties.

    >>> best_reward(np.array([1.0, 1.0, 0.0]), np.array([-2.0, -1.0, 0.0]))
    -1.5
    """
    return float(rewards[scores == scores.max()].mean())


def by_prompt(values: Sequence[float] | Array, prompts: Sequence[int]) -> Array:
    """Mean over the groups of each prompt, in order of prompt id: (groups, ...) to (prompts, ...)."""
    table = np.asarray(values, dtype=float)
    names, place = np.unique(prompts, return_inverse=True)
    total = np.zeros((len(names), *table.shape[1:]))
    np.add.at(total, place, table)
    return total / np.bincount(place).reshape(-1, *[1] * (table.ndim - 1))


def one_of(cosines: NDArray[np.floating], negatives: int) -> Array:
    """Chance that each query's own text (the diagonal) comes first among it and so many drawn others.

    The mean over all draws in closed form, ties by expected value.

    Args:
        cosines: (n, n), row i are the scores of query i.
        negatives: How many others are drawn without replacement.

    Raises:
        ValueError: There are fewer others.

    >>> one_of(np.eye(12), 10).tolist() == [1.0] * 12, float(one_of(np.zeros((12, 12)), 10)[0].round(6))
    (True, 0.090909)
    """
    size = len(cosines)
    if size <= negatives:
        raise ValueError(f"Found {size} texts, expected more than {negatives}, the negatives to draw")
    above, tied = target_places(
        list(cosines), list(range(size)), system="explanations", decision_ids=[str(n) for n in range(size)]
    )
    others = np.arange(negatives)
    # By number of texts ahead: all drawn ones are among those behind.
    chance = np.array(
        [np.prod(np.clip(size - 1 - ahead - others, 0, None) / (size - 1 - others)) for ahead in range(size)]
    )
    return np.array([chance[a : a + t].mean() for a, t in zip(above, tied, strict=True)])


def retrieval(cosines: NDArray[np.floating], negatives: int) -> dict[str, Array]:
    """R@1, R@10, MRR and the accuracy among drawn negatives of every query, (n,) each; see :func:`one_of`."""
    ranks = rank_metrics(list(cosines), list(range(len(cosines))))
    chosen = {"r@1": ranks["hr@1"], "r@10": ranks["hr@10"], "mrr": ranks["mrr"]}
    return {**chosen, f"1-of-{negatives + 1}": one_of(cosines, negatives)}


def num_words(texts: Sequence[str]) -> Array:
    """Length of each text in words."""
    return np.array([len(text.split()) for text in texts], dtype=float)


def centred(values: Any, groups: NDArray[np.int64]) -> Array:
    """Values less the mean of their group; ``groups`` holds the group's number of each row."""
    table = np.asarray(values, dtype=float)
    means = by_prompt(table, groups)  # groups are numbered 0, 1, ... here
    return table - means[groups]


def length_rule(texts: Sequence[str], rewards: Array, groups: NDArray[np.int64]) -> Array:
    """A parabola of the logarithm of the length, fitted to differences of reward within groups: (2,) weights."""
    shape = centred(length_shape(texts), groups)
    return np.linalg.lstsq(shape, centred(rewards, groups), rcond=None)[0]


def length_shape(texts: Sequence[str]) -> Array:
    """(n, 2): logarithm of the number of words and its square."""
    logs = np.log1p(num_words(texts))
    return np.stack([logs, logs**2], axis=1)


class WordRule:
    """Which words go with reward within a group: ridge regression over word presence, whoever the person is.

    Args:
        texts: Rationales to fit on.
        rewards: Of each.
        groups: Number of each one's group.
        max_words: Most frequent words that count.
    """

    def __init__(
        self, texts: Sequence[str], rewards: Array, groups: NDArray[np.int64], *, max_words: int = 2000
    ) -> None:
        self.words = CountVectorizer(binary=True, max_features=max_words, dtype=np.float32)
        present = self.words.fit_transform(texts)
        tuning = groups >= 0.8 * (groups.max() + 1)  # whole groups; the last fifth chooses the penalty

        def quality(penalty: float) -> float:
            scores = present[tuning] @ self._fit(present[~tuning], rewards[~tuning], groups[~tuning], penalty)
            mine = groups[tuning]
            return float(np.mean([spearman(scores[mine == g], rewards[tuning][mine == g]) for g in np.unique(mine)]))

        self.penalty = max(RIDGES, key=quality)
        self.weights = self._fit(present, rewards, groups, self.penalty)

    @staticmethod
    def _fit(present: Any, rewards: Array, groups: NDArray[np.int64], penalty: float) -> Array:
        counts = np.bincount(groups)
        inside = np.zeros((len(counts), present.shape[1]))
        for number in range(len(counts)):
            rows = groups == number
            inside[number] = np.asarray(present[rows].mean(axis=0)).ravel()
        products = (present.T @ present).toarray() - (inside * counts[:, None]).T @ inside
        target = present.T @ centred(rewards, groups)
        return np.linalg.solve(products + penalty * np.eye(len(products)), target)

    def __call__(self, texts: Sequence[str]) -> Array:
        """Scores of texts, higher is better."""
        return np.asarray(self.words.transform(texts) @ self.weights)
