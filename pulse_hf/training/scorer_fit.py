"""Fit one scorer: the base model with a fresh adapter, TRL's settings, and what is saved of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import num_processes, process
from pulse_hf.models.device import computes_in_bf16, default_device
from pulse_hf.models.embedded import commit_of, resolve_model
from pulse_hf.models.scorer.adapter import save_adapter
from pulse_hf.reasoning.examples import PromptShape, ScorerExample

if TYPE_CHECKING:
    from peft import PeftModel

    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
    from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor
    from pulse_hf.training.scorer import RecommenderSettings


def make_processor(settings: RecommenderSettings) -> PulseScorerProcessor:
    """The processor of the base model with the settings' token budgets.

    Raises:
        ValueError: The base model has fewer positions than a prompt with its candidate may have tokens.
    """
    from transformers import AutoConfig, AutoTokenizer

    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor

    path, identity = resolve_model(settings.base_model)
    config = AutoConfig.from_pretrained(path, revision=commit_of(identity), trust_remote_code=False)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)  # None where they are relative
    if positions is not None and 0 < positions < settings.max_length:
        raise ValueError(
            f"max_length is {settings.max_length}, but the base model {settings.base_model} has {positions} positions "
            f"(max_position_embeddings). Set recommender.max_length to at most {positions}, or take another model."
        )
    tokenizer = AutoTokenizer.from_pretrained(path, revision=commit_of(identity), trust_remote_code=False)
    return PulseScorerProcessor(
        tokenizer,
        settings.judge_text,
        settings.max_length - settings.max_candidate_tokens,
        settings.max_candidate_tokens,
    )


def train_scorer(
    train: Series[ScorerExample],
    validation: Series[ScorerExample],
    settings: RecommenderSettings,
    processor: PulseScorerProcessor,
    shape: PromptShape,
    *,
    seed: int,
    folder: Path,
    text_folder: Path | None = None,
) -> dict[str, Any]:
    """Train one scorer on its texts, weigh votes where there are any, and save its adapter, head and record.

    Args:
        train: Rows to learn from.
        validation: Rows to stop by.
        settings: Of the stage.
        processor: Tokenizes and packs.
        shape: What the prompts show; saved with the adapter.
        seed: Of the adapter's start and the order of the rows.
        folder: Where to; the trainer's checkpoints lie beside it while the stage runs.
        text_folder: Where the scorer goes as it is before it takes votes, if anywhere.

    Returns:
        Rows, tokens, seconds, the validation curve.

    Raises:
        ValueError: Rows have no label among their candidates.
    """
    from pulse_hf.training.candidate_trainer import train_candidates

    started = time.perf_counter()
    _require_labels((*train, *validation))
    read = [[replace(one, features=()) for one in rows] for rows in (train, validation)]  # texts decide the fit alone
    encoded, stopping = (processor.encode(rows, [one.target_index for one in rows]) for rows in read)
    model, identity = adapted_scorer(settings, processor, seed)
    scratch = folder.parent / ".checkpoints" / folder.name
    fitted = train_candidates(
        model,
        processor,
        encoded,
        stopping,
        sft_config(settings, scratch, seed, evaluate=bool(stopping)),
        head_learning_rate=settings.head_learning_rate,
        patience=settings.patience,
        name=folder.name,
    )
    if text_folder is not None and process() == 0:
        text_only = asdict(replace(shape, shared_temperature=None))
        save_adapter(model, text_folder, processor=processor, base=identity, prompt=text_only)
    if shape.features:
        fitted["weights"] = _take_votes(model, processor, shape.features, validation, stopping, settings)
    if process() == 0:
        save_adapter(model, folder, processor=processor, base=identity, prompt=asdict(shape))
    return fitted | {
        "rows": len(encoded),
        "validation_rows": len(stopping),
        "tokens_per_epoch": sum(one.num_tokens for one in encoded),
        "truncated_candidates": processor.truncated_candidates,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _require_labels(examples: Series[ScorerExample]) -> None:
    """Refuse rows that do not say which candidate was chosen: they would teach nothing, or stop a fit far from here.

    Raises:
        ValueError: There are such; how many and which are named.
    """
    wrong = [
        one.decision_id for one in examples if one.target_index not in range(len(one.candidates))
    ]  # None, and -100, which losses pass over without a word
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(examples)} rows have no label among their candidates (decisions "
            f"{', '.join(wrong[:3])}), expected the place of the chosen one. Make the stage candidates anew."
        )


def _take_votes(
    model: PeftModel,
    processor: PulseScorerProcessor,
    features: Series[str],
    validation: Series[ScorerExample],
    texts: Series[EncodedExample],
    settings: RecommenderSettings,
) -> dict[str, float]:
    """Fit on validation what the text's logit and each vote count, and build it into the scorer."""
    import torch

    from pulse_hf.models.scorer.adapter import scorer_of
    from pulse_hf.models.scorer.processing_scorer import score_encoded
    from pulse_hf.training.vote_weights import fit_vote_weights, weigh_votes

    names = ("text", *features)
    weights = [1.0] * len(names)
    if validation:
        logits = score_encoded(
            model,
            processor,
            texts,
            settings.eval_batch_size,
            bf16=uses_bf16(settings),
        )
        most = max(map(len, logits))
        rows = [
            [(score, *votes) for score, votes in zip(scores, one.features, strict=True)]
            + [(-torch.inf,) * len(names)] * (most - len(scores))
            for scores, one in zip(logits, validation, strict=True)
        ]
        weights = fit_vote_weights(torch.tensor(rows), torch.tensor([one.target_index for one in validation]))
    weigh_votes(scorer_of(model), weights)
    return {name: round(weight, 6) for name, weight in zip(names, weights, strict=True)}


def adapted_scorer(
    settings: RecommenderSettings, processor: PulseScorerProcessor, seed: int
) -> tuple[PeftModel, Mapping[str, str]]:
    """The base model as a scorer with a fresh adapter; only the adapter and the head train.

    Returns:
        The model and the base model's identity.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from pulse_hf.models.attention import attend_for_training
    from pulse_hf.models.scorer.modeling_encoder_scorer import scorer_on

    path, identity = resolve_model(settings.base_model)
    scorer = scorer_on(
        path,
        likelihood_scale=settings.likelihood_scale,
        dtype=torch.bfloat16 if torch.cuda.is_available() and uses_bf16(settings) else torch.float32,
        revision=commit_of(identity),
        seed=seed,
    )
    attend_for_training(scorer.model)
    if settings.head_tokens and scorer.causal:
        scorer.init_head(scorer.lm_head.weight, *answer_ids(processor, settings.head_tokens))
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_target_modules(scorer, settings.target_modules),
        layers_to_transform=_top_layers(scorer, settings.lora_layers),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(scorer, adapter)
    scorer.score.requires_grad_(True)
    scorer.likelihood_score.requires_grad_(settings.likelihood_scale != 0)
    return model, identity


def _target_modules(scorer: PulseScorerModel, wanted: Series[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter.

    Families name them differently (``qkv_proj``, ``gate_up_proj`` in Phi), and PEFT adapts whatever it finds of a list
    without a word about the rest.
    """
    import torch

    linear = (name for name, part in scorer.model.named_modules() if isinstance(part, torch.nn.Linear))
    found = sorted({name.rpartition(".")[2] for name in linear})
    absent = [name for name in wanted or () if name not in found]
    if absent:
        raise ValueError(
            f"target_modules: found {absent}, but {scorer.config.base_config.model_type!r} has the linear layers "
            f"{found}; name some of these, or null for all."
        )
    return sorted(wanted) if wanted else found


def _top_layers(scorer: PulseScorerModel, number: int | None) -> list[int] | None:
    layers = scorer.config.base_config.num_hidden_layers
    if number is None:
        return None
    if not 1 <= number <= layers:
        raise ValueError(
            f"lora_layers: found {number}, expected 1 to {layers}, the base model's number of layers, or None for all"
        )
    return list(range(layers - number, layers))


def answer_ids(processor: PulseScorerProcessor, answers: tuple[str, str]) -> tuple[int, int]:
    """The token that begins each answer right after the judge text.

    Raises:
        ValueError: The two answers begin with the same token.
    """

    def ids(text: str) -> list[int]:
        tokens: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    size = len(ids(processor.judge_text))
    positive, negative = (ids(processor.judge_text + answer)[size:] for answer in answers)
    if not positive or not negative or positive[0] == negative[0]:
        raise ValueError(
            f"head_tokens {answers!r} do not begin with two different tokens after {processor.judge_text!r}; "
            "choose others or None"
        )
    return positive[0], negative[0]


def sft_config(settings: RecommenderSettings, scratch: Path, seed: int, *, evaluate: bool) -> Any:
    """TRL's settings: no preparation, no trackers, batches of like lengths, a checkpoint an epoch."""
    import torch
    from trl import SFTConfig

    config = SFTConfig(
        output_dir=str(scratch),
        use_cpu=not torch.cuda.is_available(),
        bf16=uses_bf16(settings),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        num_train_epochs=settings.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        per_device_train_batch_size=_share(settings.batch_size),
        per_device_eval_batch_size=settings.eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=seed,
        data_seed=seed,
    )
    if config.n_gpu > 1:  # one process uses one GPU; the trainer would spread it over all (torchrun does that here)
        config._n_gpu = 1
    return config


def _share(batch_size: int) -> int:
    """This process's part of a batch, so that a step is the same whatever the number of processes.

    (But an epoch's last one: where it is shorter, several processes fill it up with rows of the first.)
    """
    if batch_size % num_processes():
        raise ValueError(f"batch_size is {batch_size}, which {num_processes()} processes cannot share evenly.")
    return batch_size // num_processes()


def uses_bf16(settings: RecommenderSettings) -> bool:
    """Whether training computes in bfloat16: as asked, or where the hardware does it natively."""
    if settings.bf16 is not None:
        return settings.bf16
    return computes_in_bf16(default_device())
