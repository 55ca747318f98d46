"""``fusion``: systems joined, and calibrated by popularity: an ingredient may count otherwise for rare items.

A sequential model knows nothing of an item that nobody chose yet, and much of a popular one; a text model knows both
alike. One weight for all items makes it give up the one for the other. Each ingredient therefore also enters times
``events / (events + mean events per item)``, beside this share itself and a mark for items without any event. Whether
that helps, and how strongly weights are pulled to zero, is chosen by cross-validation on validation decisions. All of
it depends on the item alone, so no candidate's score depends on the company it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.evaluation.fusion.stacker import Rows, Stacker, fit_stacker
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

INGREDIENTS = ("sasrec+text", "sasrec", "item-knn", "title-similarity", "bm25", "log-popularity")
REVIEWS = "bm25-reviews"
"""A further ingredient where people have written reviews."""
TUNED = ("encoder-tuned", "morec")
"""Further ingredients where stage ``baselines`` has fitted them: text encoders tuned without reasons."""
SHARE, UNSEEN = "share of events", "never chosen"
FOLDS = 5
_PULLS = (1.0, 10.0, 100.0, 1000.0)

__all__ = [
    "FOLDS",
    "INGREDIENTS",
    "REVIEWS",
    "SHARE",
    "TUNED",
    "UNSEEN",
    "Fusion",
    "by_popularity",
    "events_shares",
    "fit_fusion",
    "log_loss",
]


@dataclass(frozen=True)
class Fusion:
    """A fitted fusion.

    Args:
        stacker: Its constants.
        centres: Each ingredient's mean on validation where popularity enters, else ``None``.
        l2: The pull to zero that was chosen.
        cross_validated: Mean held-out log-loss of everything there was to choose from.
    """

    stacker: Stacker
    centres: Mapping[str, float] | None
    l2: float
    cross_validated: Mapping[str, float]

    def scores(self, rows: Mapping[str, Rows], gates: Rows) -> list[NDArray[np.float64]]:
        """Fused scores, one array per decision.

        Args:
            rows: Each ingredient's scores.
            gates: Each candidate's share of events, in [0, 1).
        """
        return self.stacker.scores(rows if self.centres is None else by_popularity(rows, gates, self.centres))

    def record(self) -> dict[str, Any]:
        """The constants as JSON."""
        beside = {"by_popularity": self.centres is not None, "l2": self.l2, "cross_validated": self.cross_validated}
        return {**asdict(self.stacker), **beside}


def events_shares(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Each candidate's share of events, in [0, 1): 0 for an item without a training event, 1/2 for an average one."""
    counts = study.training_counts
    mean = sum(counts.values()) / len(study.items)
    return [
        events / (events + mean)
        for events in (np.array([counts[item] for item in items], float) for items in study.candidates(decisions))
    ]


def by_popularity(rows: Mapping[str, Rows], gates: Rows, centres: Mapping[str, float]) -> dict[str, Rows]:
    """The ingredients, each of them times the gate, the gate, and a mark for items that it is 0 for.

    Example:
        >>> made = by_popularity({"text": [np.array([3.0, 5.0])]}, [np.array([0.0, 0.5])], {"text": 1.0})
        >>> {name: rows[0].tolist() for name, rows in made.items() if name != "text"}
        {'text x share of events': [0.0, 2.0], 'share of events': [0.0, 0.5], 'never chosen': [1.0, 0.0]}
    """
    made = dict(rows)
    for name, values in rows.items():
        pairs = zip(values, gates, strict=True)
        made[f"{name} x {SHARE}"] = [(np.asarray(row) - centres[name]) * gate for row, gate in pairs]
    return {**made, SHARE: gates, UNSEEN: [(np.asarray(gate) == 0).astype(float) for gate in gates]}


def log_loss(scores: Rows, targets: Sequence[int]) -> float:
    """Mean of -log softmax(scores)[target].

    >>> round(log_loss([np.zeros(4)], [2]), 4)  # ln 4
    1.3863
    """
    losses = [float(np.logaddexp.reduce(row) - row[target]) for row, target in zip(scores, targets, strict=True)]
    return float(np.mean(losses))


def fit_fusion(rows: Mapping[str, Rows], gates: Rows, targets: Sequence[int], *, l2: float) -> Fusion:
    """Choose and fit on validation decisions.

    Args:
        rows: Each ingredient's validation scores.
        gates: Each candidate's share of events.
        targets: Where each target stands.
        l2: The weakest pull to zero; ten, a hundred and a thousand times it are tried, too.

    Returns:
        The variant with the smallest held-out log-loss, fitted on all of the decisions; with fewer than two of them a
        fold, the plain one.
    """
    whole = list(range(len(targets)))
    variants = {
        f"{'by popularity' if deep else 'plain'}, l2 {pull * l2:g}": (deep, pull * l2)
        for deep in (False, True)
        for pull in _PULLS
    }
    losses: dict[str, float] = {}
    if len(targets) >= 2 * FOLDS:
        losses = {name: _held_out(rows, gates, targets, *variant) for name, variant in variants.items()}
    chosen = min(losses, key=lambda name: losses[name]) if losses else next(iter(variants))
    deep, pull = variants[chosen]
    stacker, centres = _fitted(rows, gates, targets, whole, deep, pull)
    return Fusion(stacker, centres, pull, {name: round(loss, 6) for name, loss in losses.items()})


def _held_out(rows: Mapping[str, Rows], gates: Rows, targets: Sequence[int], deep: bool, l2: float) -> float:
    found = []
    for fold in range(FOLDS):
        kept = [place for place in range(len(targets)) if place % FOLDS != fold]
        held = [place for place in range(len(targets)) if place % FOLDS == fold]
        stacker, centres = _fitted(rows, gates, targets, kept, deep, l2)
        made = Fusion(stacker, centres, l2, {}).scores(_of(rows, held), [gates[place] for place in held])
        found.append(log_loss(made, [targets[place] for place in held]) * len(held))
    return sum(found) / len(targets)


def _fitted(
    rows: Mapping[str, Rows], gates: Rows, targets: Sequence[int], places: Sequence[int], deep: bool, l2: float
) -> tuple[Stacker, dict[str, float] | None]:
    mine, shares = _of(rows, places), [gates[place] for place in places]
    centres = {name: float(np.mean(np.concatenate(list(values)))) for name, values in mine.items()} if deep else None
    read = mine if centres is None else by_popularity(mine, shares, centres)
    return fit_stacker(read, [targets[place] for place in places], l2=l2), centres


def _of(rows: Mapping[str, Rows], places: Sequence[int]) -> dict[str, Rows]:
    return {name: [values[place] for place in places] for name, values in rows.items()}
