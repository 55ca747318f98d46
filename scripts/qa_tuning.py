"""LoRA tuning of the language model on (question, context, rationale -> answer), and its answers (paper §5.7).

TRL's SFTTrainer on tokens that are made as the answering engine makes them, loss on the answer alone. Every system is
tuned with the same settings on the same questions; the paper tunes its own and prompts the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qa_prompts import Cutter
from qa_rationales import asked, plain

from pulse_hf.models.device import computes_in_bf16, default_device
from pulse_hf.models.embedded import commit_of, resolve_model
from pulse_hf.reasoning.chat_tokens import ChatTokens
from pulse_hf.reasoning.generator import Generator, Sampling

IGNORED = -100


@dataclass(frozen=True)
class Tuning:
    """Settings of the tuning; the paper's rank, alpha and learning rate are lost, so these are ours.

    Args:
        model: Language model: folder, Hub id or the embedded one.
        max_length: Tokens of prompt and answer together (paper §5.3: 512).
        answer_tokens: Longest answer.
        rank: Of the adapter.
        alpha: Scale of the adapter.
        dropout: Before the adapter (paper §5.3).
        learning_rate: Of the adapter.
        epochs: Passes over the training questions.
        batch_size: Questions per step.
    """

    model: str = "pulse-hf/pulse-nano"
    max_length: int = 512
    answer_tokens: int = 24
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    learning_rate: float = 1e-3
    epochs: int = 1
    batch_size: int = 4

    @property
    def room(self) -> int:
        """Tokens of a prompt."""
        return self.max_length - self.answer_tokens


def training_rows(
    texts: Sequence[tuple[str, str]], chat: ChatTokens, cut: Cutter, longest: int
) -> list[dict[str, Any]]:
    """Prompts and right answers as tokens, with labels on the answer and the closing token.

    Args:
        texts: (prompt, answer) of each training question.
        chat: Of the language model.
        cut: Counts and cuts.
        longest: Tokens of an answer, the closing one included.
    """
    prompts = chat.encode([({"role": "user", "content": prompt},) for prompt, _ in texts])
    rows = []
    for prompt, (_, answer) in zip(prompts, texts, strict=True):
        said = chat.tokenizer(cut(chat.inert(answer), longest - 1), add_special_tokens=False)["input_ids"]
        said = [*said, chat.tokenizer.eos_token_id]
        rows.append({"input_ids": [*prompt, *said], "labels": [IGNORED] * len(prompt) + said})
    return rows


def tuned(rows: Sequence[dict[str, Any]], settings: Tuning, *, seed: int) -> tuple[Generator, float]:
    """Tune a fresh adapter and merge it in; the engine and the mean training loss.

    Args:
        rows: As :func:`training_rows` gives them.
        settings: Of the tuning.
        seed: Of the adapter's start, the order of the rows and dropout.

    Raises:
        FloatingPointError: The last loss is not finite.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from pulse_hf.reasoning.transformers_engine import TransformersGenerator
    from pulse_hf.training.finite import require_finite

    source, identity = resolve_model(settings.model)
    pinned = {"revision": commit_of(identity)}
    device = default_device()
    bf16 = computes_in_bf16(device)
    set_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16 if device == "cuda" and bf16 else torch.float32, use_safetensors=True, **pinned
    )
    tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
    adapter = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            use_cpu=device == "cpu",
            bf16=bf16,
            gradient_checkpointing=False,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=device == "cuda",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            seed=seed,
            data_seed=seed,
        )
        trainer = SFTTrainer(
            model=get_peft_model(base, adapter),
            args=config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    require_finite([("of the fit", torch.tensor(result.training_loss))], "loss", "question answering")
    merged = trainer.model.merge_and_unload().eval()
    engine = TransformersGenerator(
        merged, tokenizer, model_id=identity["id"], revision=identity["revision"], batch_size=64, cache_bytes=0
    )
    return engine, float(result.training_loss)


def answers(generator: Generator, texts: dict[str, str], longest: int) -> dict[str, str]:
    """The model's answer to each prompt, greedily; the first line of what it writes."""
    prompts = [asked(key, text) for key, text in texts.items()]
    replies = generator.generate(prompts, width=1, sampling=Sampling(max_new_tokens=longest), seed=0)
    said = (made[0].text.strip().partition("\n")[0] for made in replies)
    return {key: plain(text) for key, text in zip(texts, said, strict=True)}
