"""``sasrec`` and ``sasrec+text``: the next-item scores of the models that the stage ``sequential`` fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.models.sasrec import PulseSASRecModel

_BATCH = 256

__all__ = ["scores", "scores_by"]


def scores(
    study: Study, decisions: Sequence[Decision], *, model: str = "sasrec", stage: str = "sequential"
) -> list[NDArray[np.float64]]:
    """Raw logits of the candidates after the history.

    Args:
        study: Shared data.
        decisions: What to score.
        model: Folder of the model: ``sasrec``, ``sasrec+text``, a fold's model or one with another loss.
        stage: The stage's folder it lies in.

    Raises:
        ValueError: The model was fitted on another catalogue.
    """
    from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel

    folder = study.run / stage / model
    fitted = PulseSASRecModel.from_pretrained(str(folder)).eval()
    if fitted.config.num_items != len(study.items):
        raise ValueError(f"{folder} knows {fitted.config.num_items} items, the catalogue has {len(study.items)}")
    return scores_by(fitted, study, decisions)


def scores_by(fitted: PulseSASRecModel, study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Raw logits of the candidates after the history, by a model in memory.

    Args:
        fitted: A model whose item indices are the study's.
        study: Shared data.
        decisions: What to score.
    """
    import torch

    index = study.item_index
    histories = [[index[item] for item in history.item_ids] for history in study.histories(decisions)]
    candidates = study.candidates(decisions)
    result: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(decisions), _BATCH):
            logits = fitted.scores(histories[start : start + _BATCH]).double().numpy()
            rows = zip(logits, candidates[start : start + _BATCH], strict=True)
            result += [row[[index[item] for item in items]] for row, items in rows]
    return result
