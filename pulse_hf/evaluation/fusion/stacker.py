"""Scores of several systems joined by a conditional logit fitted on validation sets only.

The weights and the constants that standardise each ingredient come from validation decisions and stay
fixed: a test request is never normalised by its own candidates, so a candidate's fused
score does not depend on the company it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

L2 = 1e-3

Rows = Sequence["NDArray[np.float64]"]

__all__ = ["L2", "Rows", "Stacker", "fit_stacker"]


@dataclass(frozen=True)
class Stacker:
    """Fitted constants of a conditional logit over candidates.

    Args:
        names: The ingredients, in order.
        means: Mean of each ingredient on validation.
        scales: Spread of each ingredient *within* validation sets; what separates candidates.
        weights: Weight of each standardised ingredient.
        decisions: Number of validation decisions it was fitted on.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    decisions: int

    def scores(self, ingredients: Mapping[str, Rows]) -> list[NDArray[np.float64]]:
        """Fused scores, one array per decision.

        Args:
            ingredients: Name of each ingredient to its scores, one array per decision.
        """
        total: list[NDArray[np.float64]] = []
        for name, mean, scale, weight in zip(self.names, self.means, self.scales, self.weights, strict=True):
            parts = [weight * (np.asarray(row, dtype=float) - mean) / scale for row in ingredients[name]]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        return total


def fit_stacker(ingredients: Mapping[str, Rows], targets: Sequence[int], *, l2: float = L2) -> Stacker:
    """Fit by maximum likelihood: softmax over each decision's candidates, target against the rest.

    Minimises ``mean_d -log softmax(X_d w)[target_d] + l2/2 |w|^2`` on *validation* decisions (McFadden
    1974). The problem is convex, so there is one answer and no seed.

    Args:
        ingredients: Name of each ingredient to its validation scores, one finite array per decision.
        targets: Where each target stands.
        l2: Pull to 0, per standardised weight.

    Raises:
        ValueError: There is no decision, or an ingredient is not finite.
    """
    from scipy.optimize import minimize

    if not targets:
        raise ValueError(
            "The stacker is fitted on validation decisions and found none; add them to the candidates stage"
        )
    names = tuple(ingredients)
    lengths = np.array([len(row) for row in ingredients[names[0]]])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    raw = np.stack([np.concatenate(list(ingredients[name])).astype(float) for name in names], axis=1)
    for name, finite in zip(names, np.isfinite(raw).all(axis=0), strict=True):
        if not finite:
            raise ValueError(f"The stacker's ingredient {name} is not finite on a validation decision")
    within = raw - np.repeat(np.add.reduceat(raw, starts) / lengths[:, None], lengths, axis=0)
    means, scales = raw.mean(axis=0), np.sqrt((within**2).mean(axis=0))
    # An ingredient that never separates candidates cannot matter; scale 1 keeps it harmless.
    scales = np.where(scales > 1e-12, scales, 1.0)
    features = (raw - means) / scales
    chosen = starts + np.asarray(targets)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = features @ weights
        logits = logits - np.repeat(np.maximum.reduceat(logits, starts), lengths)
        odds = np.exp(logits)
        sums = np.add.reduceat(odds, starts)
        value = np.mean(np.log(sums) - logits[chosen]) + l2 / 2 * weights @ weights
        chance = odds / np.repeat(sums, lengths)
        slope = (chance @ features - features[chosen].sum(axis=0)) / len(starts) + l2 * weights
        return float(value), slope

    fitted = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-14})
    return Stacker(names, tuple(means.tolist()), tuple(scales.tolist()), tuple(fitted.x.tolist()), len(starts))
