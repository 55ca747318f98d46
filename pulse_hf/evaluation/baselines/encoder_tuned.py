"""``encoder-tuned``: an encoder tuned from history titles to the next title, without reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.artifacts import settings_of
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["scores"]


def scores(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Cosine of the last titles and each candidate's title, as the encoder was tuned.

    Args:
        study: Shared data.
        decisions: What to score.
    """
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.titles import history_titles

    folder = study.run / "baselines"
    num_titles = settings_of(folder)["num_titles"]
    model = PulseThoughtSpaceModel.from_pretrained(folder / "encoder-tuned").eval()
    texts = [history_titles(history, study.items, num_titles) for history in study.histories(decisions)]
    histories = model.encode_histories(texts).numpy()
    titles = model.encode_rationales([item.title for item in study.items.values()]).numpy()
    index = study.item_index
    return [
        (titles[[index[item] - 1 for item in candidates]] @ vector).astype(float)
        for vector, candidates in zip(histories, study.candidates(decisions), strict=True)
    ]
