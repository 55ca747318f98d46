"""The Thought Space in two dimensions: principal components, because they can place points that come later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FITTED_ROWS = 20_000
DRAWN_POINTS = 2_500
SEED = 0


@dataclass(frozen=True)
class Neighbour:
    """A stored reason near a point.

    Args:
        row: Its row among the stored reasons.
        place: ``(2,)`` on the map.
        cosine: Nearness in the whole space, in [-1, 1].
    """

    row: int
    place: NDArray[np.float64]
    cosine: float


class ThoughtMap:
    """A flat view of stored reasons that places new ones, too.

    Args:
        vectors: ``(num_reasons, dim)`` unit vectors, at least one.

    Example:
        >>> flat = ThoughtMap(np.eye(3, dtype=np.float32))
        >>> flat.places(np.eye(3, dtype=np.float32)).shape
        (3, 2)
        >>> [one.row for one in flat.neighbours(np.array([0.1, 0.9, 0.0]), count=1)]
        [1]
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors
        rows = np.sort(np.random.default_rng(SEED).permutation(len(vectors))[:FITTED_ROWS])
        sample = vectors[rows].astype(np.float64)
        self._mean = sample.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov(sample - self._mean, rowvar=False, bias=True))
        best = axes[:, ::-1][:, :2]
        # An axis may point either way; the larger half of its loadings is made positive so that maps stay alike.
        self._axes = best * np.where(np.abs(best).max(axis=0) == best.max(axis=0), 1.0, -1.0)
        self.share = float(values[-2:].sum() / max(values.sum(), 1e-12))
        shown = self._projected(sample)
        self._low, self._high = np.quantile(shown, 0.005, axis=0), np.quantile(shown, 0.995, axis=0)
        self.background = self.places(vectors[rows][:: max(1, len(rows) // DRAWN_POINTS)])

    def _projected(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        return (vectors - self._mean) @ self._axes

    def places(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points ``(n, 2)`` in [0, 1]; what lies outside the picture is put on its edge."""
        width = np.maximum(self._high - self._low, 1e-9)
        inside = (self._projected(np.atleast_2d(vectors)) - self._low) / width
        return np.clip(0.04 + 0.92 * inside, 0.0, 1.0)

    def neighbours(self, point: NDArray[np.floating], *, count: int) -> list[Neighbour]:
        """The stored reasons nearest to a point in the whole space, nearest first."""
        cosines = self.vectors @ np.asarray(point, dtype=self.vectors.dtype)
        count = min(count, len(cosines))
        nearest = np.argpartition(-cosines, count - 1)[:count]
        rows = nearest[np.argsort(-cosines[nearest], kind="stable")]
        places = self.places(self.vectors[rows])
        return [Neighbour(int(row), place, float(cosines[row])) for row, place in zip(rows, places, strict=True)]
