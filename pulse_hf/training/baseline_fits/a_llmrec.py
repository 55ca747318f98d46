"""``a-llmrec`` and ``a-llmrec+reason``: SASRec's knowledge as soft tokens of a frozen language model.

Kim et al., KDD 2024; the variant with r* in the prompt is the PULSE paper's (§5.2). The language model is the run's
scorer's own and stays as it is; rows, epochs, batches, prompt budget and early stopping are the scorer's, too, so that
no row wins by tuning. SASRec is the run's ``sasrec``.

Departures from the original: a candidate is scored by the mean log-likelihood of its title behind its soft token, in a
branch of its own (:mod:`pulse_hf.reasoning.soft_prompts`), and stage 2 learns by cross-entropy over the candidates of
the train sets, since the loss of the chosen title alone would teach to read a title off its soft token and not to
choose. Like the original, a training row's user vector comes from a SASRec that was fitted on the row's target;
validation, where it was not, chooses the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pulse_hf.artifacts import Checkpoints, sha256_of_text
from pulse_hf.models.a_llmrec import PulseALLMRecConfig, PulseALLMRecModel
from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor, soft_scorer
from pulse_hf.models.attention import attend_for_training
from pulse_hf.models.device import default_device
from pulse_hf.models.embedded import commit_of, resolve_model
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.reasoning.examples import PromptShape, load_thoughts
from pulse_hf.reasoning.prompts import PromptBudget
from pulse_hf.reasoning.soft_prompts import soft_examples
from pulse_hf.schema import stable_hash
from pulse_hf.training.baseline_fits.alignment import Aligned, align
from pulse_hf.training.baseline_fits.projections import ProjectionFit
from pulse_hf.training.scorer import read_sets
from pulse_hf.training.scorer_fit import uses_bf16
from pulse_hf.training.sequential import training_sequences

if TYPE_CHECKING:
    from pulse_hf.training.baseline_fits.material import Material

LIKELIHOOD_SCALE = 8.0  # as the scorer's

__all__ = ["fit_a_llmrec"]


def fit_a_llmrec(name: str, material: Material) -> dict[str, Any]:
    """Fit one of the two systems and save it in a folder of its name.

    Args:
        name: ``a-llmrec`` or ``a-llmrec+reason``.
        material: The run's data and budgets; its stages ``sequential``, ``candidates`` and ``thoughts`` are read, and
            the settings of ``recommender``.

    Returns:
        What happened in both stages, and ``inputs_sha256`` of what the language model read.

    Raises:
        ArtifactError: A stage is missing.
        ValueError: A prompt does not fit, or no train set has a thought.
        FloatingPointError: A loss is not finite.
    """
    started = time.perf_counter()
    settings = material.recommender
    path, identity = resolve_model(settings.base_model)
    sasrec = PulseSASRecModel.from_pretrained(str(material.run / "sequential" / "sasrec")).eval()
    index = {item.item_id: number for number, item in enumerate(material.items, start=1)}
    training = [[index[item] for item in row] for row in training_sequences(material.sequences)]
    shape = PromptShape(name == "a-llmrec+reason", False, PromptBudget(score_events=settings.score_events))
    seed = stable_hash("a-llmrec", material.seed) % 2**31  # the same for both: only the reason is different
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PulseALLMRecModel(
            PulseALLMRecConfig(
                num_items=len(index),
                item_dim=sasrec.config.dim,
                text_dim=material.text_vectors.shape[1],
                lm_dim=_hidden_size(path, identity),
                likelihood_scale=LIKELIHOOD_SCALE,
                base=dict(identity),
                prompt=asdict(shape),
                max_prompt_tokens=settings.max_length - settings.max_candidate_tokens,
                max_candidate_tokens=settings.max_candidate_tokens,
            )
        )
    aligned = align(model, Aligned.of(sasrec, training, material.text_vectors), seed=seed)
    model.requires_grad_(False)
    for part in (model.user_projection, model.item_projection):
        part.requires_grad_(True)
    processor = SoftPromptProcessor.of(model.config)
    train_sets, validation_sets, counts = read_sets(material.run, settings, material.seed)
    by_user = {sequence.user_id: sequence for sequence in material.sequences}
    thoughts = load_thoughts(material.run) if shape.use_reason else {}
    train, validation = (
        soft_examples(sets, by_user, material.item_of, thoughts, shape, processor.fits)
        for sets in (train_sets, validation_sets)
    )
    rows = [*train, *validation]
    encoded = processor.encode_soft(rows, [one.target_index for one in rows])
    users = sasrec.user_vectors([one.history for one in rows])
    device = default_device()
    dtype = torch.bfloat16 if device == "cuda" and uses_bf16(settings) else torch.float32
    scorer = soft_scorer(model, users, dtype=dtype).to(device)
    attend_for_training(scorer.model)
    fit = ProjectionFit(scorer, processor, settings, seed)
    fitted = fit.fit(encoded[: len(train)], encoded[len(train) :], Checkpoints(material.work, name))
    model.cpu().save_pretrained(material.work / name)
    return {
        "alignment": aligned,
        **fitted,
        "train": counts["train"],
        "seconds": round(time.perf_counter() - started, 3),
        "inputs_sha256": sha256_of_text(one.told() for one in train),
    }


def _hidden_size(path: str, identity: Mapping[str, str]) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, revision=commit_of(identity), trust_remote_code=False)
    return int(config.get_text_config().hidden_size)
