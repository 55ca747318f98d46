"""``a-llmrec`` and ``a-llmrec+reason``: a frozen language model that reads SASRec's knowledge as soft tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.evaluation.protocol import Study
from pulse_hf.models.device import default_device
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.reasoning.examples import Thought

__all__ = ["scores"]


def scores(
    study: Study, decisions: Sequence[Decision], *, model: str, thoughts: Mapping[str, Thought]
) -> list[NDArray[np.float64]]:
    """Scaled mean log-likelihood of each candidate's title (Kim et al., KDD 2024; see ``training.baseline_fits``).

    Args:
        study: Shared data.
        decisions: What to score.
        model: Folder inside ``baselines/``.
        thoughts: By decision id, for the system that reads r*.

    Raises:
        ArtifactError: The language model is not the one it was fitted for.
        ValueError: The model was fitted on another catalogue.
    """
    import torch

    from pulse_hf.models.a_llmrec import PulseALLMRecModel
    from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor, soft_scorer
    from pulse_hf.models.device import computes_in_bf16
    from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel
    from pulse_hf.models.scorer.processing_scorer import score_encoded
    from pulse_hf.reasoning.examples import PromptShape
    from pulse_hf.reasoning.soft_prompts import soft_examples

    folder = study.run / "baselines" / model
    bridge = PulseALLMRecModel.from_pretrained(str(folder), use_safetensors=True).eval()
    if bridge.config.num_items != len(study.items):
        raise ValueError(f"{folder} knows {bridge.config.num_items} items, the catalogue has {len(study.items)}")
    sasrec = PulseSASRecModel.from_pretrained(str(study.run / "sequential" / "sasrec")).eval()
    processor = SoftPromptProcessor.of(bridge.config)
    sets = [study.sets[decision.decision_id] for decision in decisions]
    shape = PromptShape.from_dict(bridge.config.prompt)
    examples = soft_examples(sets, study.sequences, study.items, thoughts, shape, processor.fits)
    device = default_device()
    bf16 = computes_in_bf16(device)
    users = sasrec.user_vectors([one.history for one in examples])
    scorer = soft_scorer(bridge, users, dtype=torch.bfloat16 if device == "cuda" and bf16 else torch.float32)
    rows = score_encoded(scorer.to(device), processor, processor.encode_soft(examples), bf16=bf16)
    return [np.array(row) for row in rows]
