"""Agreement between reasons and behaviour in the thought spaces of a run (paper Eq. 2), cross-fitted.

Every encoder here is frozen: it is loaded, asked, and its weights are hashed before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as Series
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.models.device import computes_in_bf16
from pulse_hf.models.loading import one_load_at_a_time
from pulse_hf.reasoning.tree_of_thought import Evaluate
from pulse_hf.schema import Decision, fold_of

if TYPE_CHECKING:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

__all__ = ["FULL_SPACE", "agreement_with", "load_space", "load_spaces", "weights_sha256"]

FULL_SPACE = "model"


@one_load_at_a_time
def load_space(run: Path, name: str) -> PulseThoughtSpaceModel:
    """One thought space of a run, frozen.

    Args:
        run: The run folder.
        name: :data:`FULL_SPACE`, or ``fold-N`` for the one fitted without the people of fold N.

    Raises:
        OSError: The run has none of that name.
    """
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

    space: PulseThoughtSpaceModel = PulseThoughtSpaceModel.from_pretrained(str(run / "thought_space" / name)).eval()
    space.encodes_in_bf16 = computes_in_bf16(space.device.type)
    return space


def load_spaces(run: Path) -> dict[str, PulseThoughtSpaceModel]:
    """The full thought space and those of the folds, by folder name."""
    folds = sorted(folder.name for folder in (run / "thought_space").glob("fold-*"))
    return {name: load_space(run, name) for name in (FULL_SPACE, *folds)}


def agreement_with(
    behaviours: Series[tuple[Decision, str]], spaces: Mapping[str, PulseThoughtSpaceModel], seed: int
) -> Evaluate:
    """An evaluator of reasons for these decisions: the cosine with b_u in the decision's space.

    Training decisions are judged by the space that was fitted without their user's fold, all others by
    the full one. Histories are encoded once, equal reasons once per call and space.

    Args:
        behaviours: Decisions and their texts b_u.
        spaces: As :func:`load_spaces` gives them.
        seed: The run's seed, which made the folds.
    """
    num_folds = len(spaces) - 1
    by_space: dict[str, list[tuple[str, str]]] = {}
    for decision, text in behaviours:
        crossed = decision.split == "train" and num_folds > 0
        name = f"fold-{fold_of(decision.user_id, num_folds, seed)}" if crossed else FULL_SPACE
        by_space.setdefault(name, []).append((decision.decision_id, text))
    histories = {}
    for name, mine in by_space.items():
        vectors = spaces[name].encode_histories([text for _, text in mine])
        histories.update({key: (name, vector) for (key, _), vector in zip(mine, vectors, strict=True)})

    def evaluate(pairs: list[tuple[str, str]]) -> list[float]:
        reasons: dict[str, dict[str, Any]] = {}
        for key, reason in pairs:
            reasons.setdefault(histories[key][0], {})[reason] = None
        for name, texts in reasons.items():
            reasons[name] = dict(zip(texts, spaces[name].encode_rationales(list(texts)), strict=True))
        values = []
        for key, reason in pairs:
            name, history = histories[key]
            values.append(float((history * reasons[name][reason]).sum().clamp(-1, 1)))
        return values

    return evaluate


def weights_sha256(space: PulseThoughtSpaceModel) -> str:
    """The sha256 of a space's weights as they are in memory."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(space.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
