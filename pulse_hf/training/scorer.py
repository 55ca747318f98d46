"""Stage ``recommender``: LoRA tuning of the language model as candidate scorer (paper §4.2, Eq. 3).

Reads ``sequences/``, ``candidates/``, ``thoughts/`` and, for the votes of shared reasons, ``rationales/`` and the
frozen ``thought_space/``; writes one scorer per system, on the same rows with the same settings:

* ``pulse-text``: r* and s* in the prompt, the paper's own form;
* ``pulse``: the same model, with votes of shared reasons beside each candidate. What the model's logit and the votes
  count are three constants fitted on validation;
* ``slm+sft``: no reason at all, the control for what reasons add.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import (
    Fingerprint,
    build,
    fsync_files,
    parent_sha256,
    process,
    read_json,
    read_table,
    sha256_of_text,
    tell_all,
    wait_for_all,
    write_json,
)
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.ranges import above, at_least, shares, some_of
from pulse_hf.reasoning.examples import SCORERS, PromptShape, ScorerExample, examples_of_sets, load_thoughts
from pulse_hf.reasoning.prompts import CANDIDATE_WORDS, PromptBudget, is_cut, prompt_hashes
from pulse_hf.retrieval.candidates import load_candidates
from pulse_hf.schema import CandidateSet, stable_hash

FOLDER = "recommender"
PARENTS = ("sequences", "candidates", "thoughts")
VOTING_PARENTS = ("rationales", "thought_space")
_FITTED = ".fitted.json"


@dataclass(frozen=True)
class RecommenderSettings:
    """Settings of the stage.

    Args:
        base_model: Language model to tune: folder or Hub id (paper: microsoft/Phi-4-mini-instruct), or a text encoder
            of BERT's or DistilBERT's family (ours; see :mod:`pulse_hf.models.scorer.modeling_encoder_scorer`).
        systems: Which of ``pulse``, ``pulse-text`` and ``slm+sft`` to train.
        lora_rank: Rank of the adapter (ours; the paper's number is lost).
        lora_alpha: Scale of the adapter (ours).
        lora_dropout: Dropout before the adapter (paper §5.3); costs a third of a step on a CPU.
        lora_layers: Adapt only the last so many layers, so that no gradient runs below them; ``None`` for
            all of them (paper).
        target_modules: Linear layers that get an adapter, by the last part of their name; ``None`` for all of the
            decoder's (ours).
        learning_rate: Of the adapter (ours; the paper's is lost).
        head_learning_rate: Of the scoring head (ours).
        weight_decay: Of the adapter (ours).
        batch_size: Decisions per step (ours).
        gradient_accumulation: Batches per step (ours); each counts the same, so that rows of an epoch's last, shorter
            one weigh more.
        gradient_checkpointing: Trade time for memory; for large base models on a GPU.
        eval_batch_size: Decisions per pass without gradients (ours).
        epochs: At most so many passes over the rows (ours).
        warmup: Share of the steps in which the learning rate rises (paper §5.3 for phase I).
        patience: Epochs without a rise of validation HR@1 before it stops (early stopping: paper §5.3).
        training_negatives: Negatives read of each training row, the first of its shuffled set; ``None`` for all of
            them. Fewer are faster (ours).
        validation_sets: At most so many validation decisions to stop by, chosen by user; ``None`` for all.
        max_length: Tokens of prompt and one candidate together (paper §5.3).
        max_candidate_tokens: Tokens of them kept for a candidate (ours).
        judge_text: What every candidate ends with; the answer's place in the prompts.
        head_tokens: The head starts as the difference of these two answers' output embeddings, which is
            the base model's own judgement; ``None`` for a random head, which an encoder always has (ours).
        likelihood_scale: Where the weight of a candidate's mean token log-likelihood in its logit starts (an
            encoder's: of its cosine with the prompt); 0 leaves it out (ours).
        shared_temperature: Kernel width of the votes of shared reasons beside each candidate; ``None`` leaves them
            out, as the paper does (ours; see :mod:`pulse_hf.reasoning.shared_reasons`).
        shared_smoothing: Their smoothing (ours).
        title_agreement: Beside the votes, how near each candidate's title is to the reason and to the behaviour in
            Thought Space (ours; for a space fitted with ``titles``).
        use_agreement: Show s* beside r* (paper §4.2).
        score_events: History events shown (ours).
        bf16: bfloat16 autocast; ``None`` uses it where the hardware computes in it.
    """

    base_model: str = "pulse-hf/pulse-nano"
    systems: tuple[str, ...] = SCORERS
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_layers: int | None = None
    target_modules: tuple[str, ...] | None = None
    learning_rate: float = 5e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 16
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    eval_batch_size: int = 32
    epochs: int = 3
    warmup: float = 0.1
    patience: int = 1
    training_negatives: int | None = None
    validation_sets: int | None = None
    max_length: int = 512
    max_candidate_tokens: int = 48
    judge_text: str = "\nFits:"
    head_tokens: tuple[str, str] | None = (" yes", " no")
    likelihood_scale: float = 8.0
    shared_temperature: float | None = 0.15
    shared_smoothing: float = 0.3
    title_agreement: bool = False
    use_agreement: bool = True
    score_events: int = 6
    bf16: bool | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        at_least(self, 1, "lora_rank", "lora_alpha", "lora_layers", "batch_size", "gradient_accumulation")
        at_least(self, 1, "eval_batch_size", "epochs", "patience", "training_negatives", "validation_sets")
        at_least(self, 1, "max_length", "max_candidate_tokens", "score_events")
        at_least(self, 0, "weight_decay", "likelihood_scale", "shared_smoothing")
        above(self, 0, "learning_rate", "head_learning_rate", "shared_temperature")
        shares(self, "warmup")
        shares(self, "lora_dropout", below_one=True)
        some_of(self, "systems", SCORERS)
        if "pulse" not in self.systems:
            raise ValueError(f"systems: found {list(self.systems)}, expected 'pulse' among them.")


def recommender(run: Path, settings: RecommenderSettings, *, seed: int, force: bool = False) -> Path:
    """Train the scorers of a run.

    Args:
        run: The run folder, in which the stages before have finished.
        settings: See :class:`RecommenderSettings`.
        seed: Of the adapter's start and the order of the rows.
        force: Train anew although the artefact was made from other settings or inputs.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: A setting does not fit the model, or no training row has a thought.
    """
    from pulse_hf.models.embedded import resolve_model

    _, identity = resolve_model(settings.base_model)
    voting = () if settings.shared_temperature is None else VOTING_PARENTS
    fingerprint = Fingerprint(
        stage="recommender",
        settings=asdict(settings),
        seed=seed,
        parents={name: parent_sha256(run / name) for name in (*PARENTS, *voting)},
        model=identity,
        prompts=prompt_hashes("score", "candidate"),
    )
    build(run / FOLDER, fingerprint, lambda work: _make(run, work, settings, seed), force=force, together=True)
    return run / FOLDER


def _make(run: Path, work: Path, settings: RecommenderSettings, seed: int) -> dict[str, Any]:
    from pulse_hf.reasoning.agreement import FULL_SPACE, load_space
    from pulse_hf.reasoning.shared_reasons import inputs_sha256, load_shared_reasons
    from pulse_hf.training.scorer_fit import make_processor, train_scorer

    train_sets, validation_sets, counts = read_sets(run, settings, seed)
    thoughts = load_thoughts(run)
    sequences = sequences_by_user(run)
    items = items_by_id(run)
    shared = None
    if settings.shared_temperature is not None:
        shared = load_shared_reasons(run, sequences, list(items), load_space(run, FULL_SPACE))
        counts["votes"] = len(shared.vectors)
    hashed: list[str] = []
    counts["candidate_titles_cut"] = sum(is_cut(one.title, CANDIDATE_WORDS) for one in items.values())
    counts["systems"] = {}
    for name in ("pulse", "slm+sft"):
        if name not in settings.systems:
            continue
        shape = prompt_shape(settings, name)
        processor = make_processor(settings)
        reading = (sequences, items, thoughts)
        # Votes are weighed on validation; no fit reads those of a training row.
        train = examples_of_sets(
            train_sets, *reading, replace(shape, shared_temperature=None), processor.prompt_fits, None
        )
        validation = examples_of_sets(validation_sets, *reading, shape, processor.prompt_fits, shared)
        hashed += [text for one in train for text in (one.prompt, *one.candidates)]
        wait_for_all()
        if not tell_all((work / name / _FITTED).exists()):  # an interrupted stage keeps the system it had finished
            if process() == 0:
                shutil.rmtree(work / name, ignore_errors=True)
            text = work / "pulse-text" if name == "pulse" and "pulse-text" in settings.systems else None
            fitted = train_scorer(
                train, validation, settings, processor, shape, seed=seed, folder=work / name, text_folder=text
            )
            if process() == 0:
                _keep_fitted(work / name, text, fitted)
        if process() == 0:
            counts["systems"][name] = read_json(work / name / _FITTED) | {"left_out": _left_out([*train, *validation])}
    counts["inputs_sha256"] = {"recommender": sha256_of_text(hashed)}
    if shared is not None:
        counts["inputs_sha256"]["shared-reasons"] = inputs_sha256(shared.chosen())
    return counts


def _keep_fitted(folder: Path, text_folder: Path | None, fitted: dict[str, Any]) -> None:
    """Note that a system is fitted, once all that this vouches for is on the disk."""
    for made in (folder, *((text_folder,) if text_folder else ())):
        fsync_files(made)
    write_json(folder / _FITTED, fitted)


def _left_out(examples: Series[ScorerExample]) -> dict[str, int]:
    """Decisions whose prompt leaves out the oldest events, or ends of reason and titles.

    A decision's place tells how long its history is.
    """
    older = sum(int(one.decision_id.rpartition("#")[2]) > one.num_events for one in examples)
    return {
        "decisions": len(examples),
        "older_events": older,
        "reasons_or_titles": sum(one.shortened for one in examples),
    }


def prompt_shape(settings: RecommenderSettings, system: str) -> PromptShape:
    """What a system is shown."""
    use_reason = system != "slm+sft"
    return PromptShape(
        use_reason,
        settings.use_agreement and use_reason,
        PromptBudget(score_events=settings.score_events),
        settings.shared_temperature if system == "pulse" else None,
        settings.shared_smoothing,
        settings.title_agreement and system == "pulse",
    )


def read_sets(
    run: Path, settings: RecommenderSettings, seed: int
) -> tuple[list[CandidateSet], list[CandidateSet], dict[str, Any]]:
    """Candidate sets to train on (all train sets that have a thought) and to stop by.

    Raises:
        ValueError: No train set has a thought.
    """
    sets = load_candidates(run)
    thinking = set(read_table(run / "thoughts" / "thoughts.parquet")["decision_id"].to_pylist())
    train = [one for one in sets if one.split == "train"]
    kept = [one.with_negatives(settings.training_negatives) for one in train if one.decision_id in thinking]
    if not kept:
        raise ValueError(
            f"none of the {len(train)} train candidate sets has a thought; run the stage thoughts for the train split"
        )
    validation = [one for one in sets if one.split == "validation"]
    if settings.validation_sets is not None:
        validation = sorted(validation, key=lambda one: stable_hash("validation", seed, one.decision_id))[
            : settings.validation_sets
        ]
    dropped = {"no thought": len(train) - len(kept)}
    return (
        kept,
        validation,
        {"train": {"read": len(train), "kept": len(kept), "dropped": dropped}, "validation": len(validation)},
    )
