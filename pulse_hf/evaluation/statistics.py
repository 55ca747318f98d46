"""How sure a mean is: bootstrap intervals over users, paired randomisation tests, Holm's correction.

All functions take a matrix with one row per user and one column per measure, so that every interval of
a report comes from the same resamples and paired things stay paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
FLIPS = 9_999
CONFIDENCE = 0.95
_CELLS_PER_CHUNK = 4_000_000

__all__ = [
    "CONFIDENCE",
    "FLIPS",
    "RESAMPLES",
    "Interval",
    "bootstrap_means",
    "holm",
    "intervals",
    "paired",
    "paired_p",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval.

    Args:
        value: The mean over users; ``None`` if there are none.
        low: Lower end.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A mean difference of two systems on the same users.

    Args:
        difference: Mean of first minus second.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
        p: Two-sided p of the paired randomisation test.
    """

    difference: float
    low: float
    high: float
    p: float


def _chunks(rows: int, width: int) -> Iterator[int]:
    size = max(1, min(rows, _CELLS_PER_CHUNK // max(1, width)))
    for start in range(0, rows, size):
        yield min(size, rows - start)


def bootstrap_means(values: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of resampled users.

    Args:
        values: (users, measures).
        seed: Seed of the resamples; the same seed and number of users draw the same users.
        resamples: How many.

    Returns:
        (resamples, measures).
    """
    users = len(values)
    generator = np.random.default_rng(seed)
    means = []
    for size in _chunks(resamples, users):
        drawn = generator.integers(0, users, size=(size, users))
        cells = (drawn + users * np.arange(size)[:, None]).ravel()
        counts = np.bincount(cells, minlength=size * users).reshape(size, users)
        means.append(counts @ values / users)
    return np.concatenate(means)


def intervals(values: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES) -> list[Interval]:
    """Mean and 95 % percentile-bootstrap interval of each column.

    A column whose users all agree gets an interval of no width, as the percentile bootstrap does; with
    few users read that as "too few to tell".

    Args:
        values: (users, measures).
        seed: Seed of the resamples.
        resamples: How many.

    Example:
        >>> intervals(np.full((5, 1), 0.5), seed=0)
        [Interval(value=0.5, low=0.5, high=0.5)]
        >>> intervals(np.empty((0, 1)), seed=0)
        [Interval(value=None, low=None, high=None)]
    """
    if not len(values):
        return [Interval(None, None, None)] * values.shape[1]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(bootstrap_means(values, seed=seed, resamples=resamples), [tail, 1 - tail], axis=0)
    means = values.mean(axis=0)
    # A column of equal values has bootstrap means that differ from its mean by rounding.
    low, high = np.minimum(low, means), np.maximum(high, means)
    return [Interval(float(m), float(a), float(b)) for m, a, b in zip(means, low, high, strict=True)]


def paired_p(differences: NDArray[np.float64], *, seed: int, flips: int = FLIPS) -> NDArray[np.float64]:
    """Two-sided p of each column of paired differences: the sign-flip randomisation test.

    Under the null the sign of each user's difference is a coin. ``p = (1 + #{|T*| >= |T|}) / (1 + flips)``
    (Phipson & Smyth 2010), so it is never 0. For HR@1 this is the Monte-Carlo form of McNemar's exact test.

    Args:
        differences: (users, comparisons), first system minus second.
        seed: Seed of the flips.
        flips: How many; 9,999 resolve p down to 1e-4, enough for Holm over hundreds of comparisons.

    Returns:
        (comparisons,) in (0, 1].

    Example:
        >>> paired_p(np.zeros((4, 1)), seed=0).tolist()
        [1.0]
    """
    users = len(differences)
    generator = np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=0))
    # A flipped sum that equals the observed one in exact arithmetic must count as "as extreme".
    slack = 1e-9 * (1 + np.abs(differences).sum(axis=0))
    extreme = np.zeros(differences.shape[1], dtype=np.int64)
    for size in _chunks(flips, users):
        signs = generator.integers(0, 2, size=(size, users), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ differences) >= observed - slack).sum(axis=0)
    return np.asarray((1 + extreme) / (1 + flips), dtype=np.float64)


def paired(differences: NDArray[np.float64], *, seed: int) -> list[PairedDifference]:
    """Mean paired difference, its 95 % interval and p, for each column.

    Args:
        differences: (users, comparisons), first system minus second; at least one user.
        seed: Seed of resamples and flips.

    Raises:
        ValueError: There are no users.
    """
    if not len(differences):
        raise ValueError("A paired comparison needs at least one user, found none")
    spans = intervals(differences, seed=seed)
    chances = paired_p(differences, seed=seed)
    return [
        PairedDifference(float(mean), float(span.low or 0.0), float(span.high or 0.0), float(p))
        for mean, span, p in zip(differences.mean(axis=0), spans, chances, strict=True)
    ]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values (Holm 1979): compare each with the level as it stands.

    Args:
        p_values: Name of each comparison of one family to its raw p.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}
