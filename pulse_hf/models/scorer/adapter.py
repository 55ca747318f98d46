"""Save and load a trained scorer as a PEFT adapter with its scoring head beside it.

The folder::

    adapter/                   PEFT's own layout; also loads into the plain base language model (an encoder's does not)
    merged/                    instead of it, where asked for: the base model with the adapter added in
    score_head.safetensors     the head, and the weights of candidate features where there are any
    scorer.json                which base model, which token budgets, which prompt shape
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import (
    ArtifactError,
    read_json,
    read_tensors,
    sha256_of_file,
    sha256_of_text,
    write_json,
    write_tensors,
)
from pulse_hf.models.device import default_device
from pulse_hf.models.embedded import commit_of
from pulse_hf.models.loading import one_load_at_a_time

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor

ADAPTER = "adapter"
MERGED = "merged"
HEAD = "score_head.safetensors"
RECORD = "scorer.json"
ENCODER_TASK = "FEATURE_EXTRACTION"
_PROBE = "Fits: 3.5/5 | Crème brûlée don't  HELLO hello 12345 \u0e01\u0e32 \U0001f600\n- naïve"
_HEAD_MODULES = ("score", "likelihood_score", "feature_score")


@dataclass(frozen=True)
class ScorerRecord:
    """What ``scorer.json`` holds.

    Args:
        base: Identity of the base model (``resolve_model``): id, revision, weights_sha256.
        vocab_size: Of the base model.
        hidden_size: Of the base model.
        num_candidate_features: Scalars beside each candidate.
        likelihood_scale: Where the likelihood's weight started; 0 if it is not used.
        judge_text: What every candidate ends with.
        max_prompt_tokens: Longest prompt.
        max_candidate_tokens: Longest candidate.
        prompt: The prompt shape it was trained with (``PromptShape`` as a dict); empty if not recorded.
        tokenizer_sha256: Of what the tokenizer and its chat template do; empty if not recorded.
    """

    base: Mapping[str, str]
    vocab_size: int
    hidden_size: int
    num_candidate_features: int
    likelihood_scale: float
    judge_text: str
    max_prompt_tokens: int
    max_candidate_tokens: int
    prompt: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_sha256: str = ""


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands for a tokenizer: its vocabulary, its chat template, and how it reads a probe.

    By what it does, not by its files: these change with the version of the library that saved them.
    """
    vocabulary = (f"{token} {number}" for token, number in sorted(tokenizer.get_vocab().items()))
    read = tokenizer(_PROBE, verbose=False)["input_ids"]
    return sha256_of_text([json.dumps(read), json.dumps(tokenizer.chat_template, sort_keys=True), *vocabulary])


def scorer_of(model: PeftModel | PulseScorerModel) -> PulseScorerModel:
    """The scorer itself, whether or not PEFT stands around it."""
    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel

    return model if isinstance(model, PulseScorerModel) else model.get_base_model()


def head_state(model: PeftModel | PulseScorerModel) -> dict[str, torch.Tensor]:
    """The head's own weights by name."""
    return {
        name: value for name, value in scorer_of(model).state_dict().items() if name.split(".")[0] in _HEAD_MODULES
    }


def save_adapter(
    model: PeftModel,
    folder: Path,
    *,
    processor: PulseScorerProcessor,
    base: Mapping[str, str],
    prompt: Mapping[str, Any] | None = None,
) -> None:
    """Write adapter, head and record.

    Args:
        model: The trained scorer with PEFT around it.
        folder: Where to; made if absent.
        processor: Its processor.
        base: Identity of the base model, as ``resolve_model`` gives it.
        prompt: The prompt shape it was trained with.
    """
    config = model.peft_config["default"]
    # So that AutoPeftModelForCausalLM takes the folder.
    trained_as, config.task_type = config.task_type, "CAUSAL_LM" if scorer_of(model).causal else ENCODER_TASK
    # A path on this machine in adapter_config.json would be refused by the Hub, and is nobody else's.
    config.base_model_name_or_path = base["id"]
    config.revision = commit_of(base)
    config.inference_mode, training = True, config.inference_mode
    config.target_modules = sorted(config.target_modules)  # PEFT's set has another order in every process
    try:
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
    finally:
        config.task_type, config.inference_mode = trained_as, training
    write_tensors(folder / HEAD, head_state(model))
    scorer = scorer_of(model)
    record = ScorerRecord(
        base=dict(base),
        vocab_size=scorer.config.base_config.vocab_size,
        hidden_size=scorer.config.base_config.hidden_size,
        num_candidate_features=scorer.config.num_candidate_features,
        likelihood_scale=scorer.config.likelihood_scale,
        judge_text=processor.judge_text,
        max_prompt_tokens=processor.max_prompt_tokens,
        max_candidate_tokens=processor.max_candidate_tokens,
        prompt=dict(prompt or {}),
        tokenizer_sha256=tokenizer_sha256(processor.tokenizer),
    )
    write_json(folder / RECORD, asdict(record))


def read_record(folder: Path) -> ScorerRecord:
    """The record of a saved scorer.

    Raises:
        ArtifactError: There is no record, or its fields are not those that this package writes.
    """
    try:
        return ScorerRecord(**read_json(folder / RECORD))
    except TypeError as error:
        raise ArtifactError(f"{folder / RECORD}: {error}") from error


def files_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a saved scorer by its place: adapter, head and record, but no merged weights."""
    adapter = (path for path in (folder / ADAPTER).glob("*") if path.name != "README.md")  # PEFT's card
    paths = [*sorted(adapter), folder / HEAD, folder / RECORD]
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths if path.is_file()}


def processor_of(record: ScorerRecord, path: str, revision: str | None) -> PulseScorerProcessor:
    """The processor of a saved scorer, with its base model's tokenizer.

    Args:
        record: What is recorded of the scorer.
        path: The base model: folder or Hub id.
        revision: A commit of the Hub; ``None`` for a folder.

    Raises:
        ValueError: This tokenizer gives the judge text no tokens, or more than a candidate may have.
    """
    from transformers import AutoTokenizer

    from pulse_hf.models.scorer.processing_scorer import PulseScorerProcessor

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    return PulseScorerProcessor(tokenizer, record.judge_text, record.max_prompt_tokens, record.max_candidate_tokens)


@one_load_at_a_time
def load_scorer(
    base_id_or_path: str,
    folder: Path,
    merge: bool = False,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> tuple[PulseScorerModel, PulseScorerProcessor]:
    """A trained scorer on its base model, ready to score.

    Args:
        base_id_or_path: The base model: folder or Hub id.
        folder: Written by :func:`save_adapter`.
        merge: Add the adapter into the base weights, so that PEFT is gone afterwards.
        dtype: Of the weights; by default bfloat16 on a GPU that computes in it, else float32.
        device: Where to; by default a GPU if there is one.

    Returns:
        The scorer (its LoRA layers inside it unless merged) and its processor.

    Raises:
        ArtifactError: The base model or its tokenizer is not the one the adapter was trained on (both are named), or a
            file lacks a tensor, has one too many, or one with numbers that are none.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    from pulse_hf.models.device import computes_in_bf16
    from pulse_hf.models.embedded import resolve_model
    from pulse_hf.models.scorer.modeling_encoder_scorer import scorer_on

    place = torch.device(device or default_device())
    halved = place.type == "cuda" and computes_in_bf16(place.type)
    record = read_record(folder)
    merged = (folder / MERGED).is_dir()
    path, identity = resolve_model(str(folder / MERGED) if merged else base_id_or_path)
    if not merged:
        _check_base(folder, record, identity)
    revision = commit_of(identity)
    scorer = scorer_on(
        path,
        num_candidate_features=record.num_candidate_features,
        likelihood_scale=record.likelihood_scale,
        dtype=dtype or (torch.bfloat16 if halved else torch.float32),
        revision=revision,
    )
    found = {"vocab_size": scorer.config.base_config.vocab_size, "hidden_size": scorer.config.base_config.hidden_size}
    expected = {"vocab_size": record.vocab_size, "hidden_size": record.hidden_size}
    if found != expected:
        raise ArtifactError(f"{folder}: trained on a base model with {expected}, {base_id_or_path} has {found}")
    scorer.load_state_dict(_trained_tensors(folder / HEAD, head_state(scorer)), strict=False)
    if not merged:
        with warnings.catch_warnings():  # PEFT asks transformers by an older name, which whoever loads cannot mend
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted = PeftModel.from_pretrained(
                scorer, str(folder / ADAPTER), config=_for_ours(_adapter_config(folder))
            )
        # PEFT goes on with a warning where a tensor is missing.
        lora = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        _trained_tensors(folder / ADAPTER / "adapter_model.safetensors", lora)
        scorer = adapted.merge_and_unload() if merge else adapted.get_base_model()
    processor = processor_of(record, path, revision)
    found_sha256 = tokenizer_sha256(processor.tokenizer)
    if record.tokenizer_sha256 not in ("", found_sha256):
        raise ArtifactError(
            f"{folder}: trained with the tokenizer and chat template of sha256 {record.tokenizer_sha256}, but "
            f"{base_id_or_path} has {found_sha256}. Words would mean others to the model: load it on the base model "
            "it was trained on, with that one's own tokenizer and chat template."
        )
    return scorer.to(place).eval(), processor


def save_merged(base_id_or_path: str, folder: Path, target: Path) -> None:
    """Write the base model with the adapter added in, as an ordinary causal language model or encoder.

    Args:
        base_id_or_path: The base model: folder or Hub id.
        folder: Written by :func:`save_adapter`.
        target: Where to; weights are float32, so that scores stay what they were.

    Raises:
        ArtifactError: The base model is not the one the adapter was trained on.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pulse_hf.models.embedded import resolve_model

    path, identity = resolve_model(base_id_or_path)
    _check_base(folder, read_record(folder), identity)
    loading = {"revision": commit_of(identity)}
    if _adapter_config(folder).task_type == ENCODER_TASK:
        load_scorer(base_id_or_path, folder, merge=True, dtype=torch.float32)[0].model.save_pretrained(target)
    else:
        causal = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **loading
        )
        config = _for_ours(_adapter_config(folder))
        merged = PeftModel.from_pretrained(causal, str(folder / ADAPTER), config=config).merge_and_unload()
        merged.save_pretrained(target)
    AutoTokenizer.from_pretrained(path, trust_remote_code=False, **loading).save_pretrained(target)


def loads_into_plain_base(folder: Path) -> bool:
    """Whether a saved scorer has an adapter that its base model takes by plain PEFT; an encoder's has other names."""
    return (folder / ADAPTER).is_dir() and _adapter_config(folder).task_type != ENCODER_TASK


def _trained_tensors(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file: the expected ones, no others, and all of them finite."""
    found = read_tensors(path)
    absent, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if absent or extra:
        raise ArtifactError(f"{path}: lacks {absent[:3]} and has {extra[:3]} too many; it belongs to another scorer.")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ArtifactError(f"{path}: {name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
        wrong = int((~value.isfinite()).sum())
        if wrong:
            raise ArtifactError(
                f"{path}: {name} is not finite in {wrong} of {value.numel()} places; the fit that wrote it failed. "
                "Train it anew."
            )
    return found


def _adapter_config(folder: Path) -> Any:
    from peft import PeftConfig

    if not (folder / ADAPTER / "adapter_model.safetensors").is_file():
        raise ArtifactError(f"{folder / ADAPTER} has no adapter_model.safetensors; only safetensors are loaded")
    return PeftConfig.from_pretrained(str(folder / ADAPTER))


def _for_ours(config: Any) -> Any:
    """Without the task type, which would ask our model to generate text."""
    config.task_type = None
    return config


def _check_base(folder: Path, record: ScorerRecord, found: Mapping[str, str]) -> None:
    key = "revision" if record.base["weights_sha256"] == "by revision" else "weights_sha256"
    if record.base[key] != found[key]:
        raise ArtifactError(
            f"{folder}: trained on base model {record.base['id']} with {key} {record.base[key]}, but {found['id']} "
            f"has {key} {found[key]}. Load it on the base model it was trained on."
        )
