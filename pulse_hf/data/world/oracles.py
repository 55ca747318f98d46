"""The two oracles of the embedded world: the best possible ranking with and without knowing the motives."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.data.world.shop import Catalogue, follows
from pulse_hf.schema import CandidateSet, Sequence

if TYPE_CHECKING:
    from numpy.typing import NDArray


def oracle_scores(
    truth: Mapping[str, Any], sequences: Mapping[str, Sequence], sets: Series[CandidateSet]
) -> dict[str, list[NDArray[np.float64]]]:
    """True choice probabilities of the candidates, up to a constant per set.

    Args:
        truth: The world's truth.
        sequences: By user id.
        sets: Candidate sets, one per decision.

    Returns:
        ``oracle-motives`` knows the user's two motives and their shares (not which one is at work),
        ``oracle-no-motives`` knows popularity and sequence alone. One score per candidate.
    """
    index = {item_id: number for number, item_id in enumerate(truth["item_ids"])}
    catalogue = Catalogue(
        titles=[],
        served=np.array(truth["served"]),
        kind=np.array(truth["kind"]),
        domain=np.array(truth["domain"]),
        features=[],
        pop=np.array(truth["popularity"]),
    )
    weights, share = truth["weights"], truth["first_motive_share"]
    scores: dict[str, list[NDArray[np.float64]]] = {"oracle-motives": [], "oracle-no-motives": []}
    for candidates in sets:
        user_id, position = candidates.decision_id.rsplit("#", 1)
        past = [index[item_id] for item_id in sequences[user_id].item_ids[: int(position)]]
        chosen = [index[item_id] for item_id in candidates.item_ids]
        base = weights["popularity"] * catalogue.pop + follows(catalogue, past[-1], weights["sequence"])
        probability = np.zeros(len(chosen))
        for motive, part in zip(truth["users"][user_id], (share, 1 - share), strict=True):
            chance = np.exp(weights["motive"] * catalogue.served[:, motive] + base)
            chance[past] = 0.0  # nobody chooses an item twice
            probability += part * chance[chosen] / chance.sum()
        scores["oracle-motives"].append(probability)
        scores["oracle-no-motives"].append(base[chosen])
    return scores
