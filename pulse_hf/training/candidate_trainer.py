"""TRL's SFTTrainer with Eq. 3 as its loss: cross-entropy over the candidates of a decision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Series
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor

logger = logging.getLogger(__name__)

METRIC = "hr@1"


class CandidateTrainer(SFTTrainer):
    """Trains a packed scorer; all that differs from SFT is the loss and the collator."""

    loss_is_scaled_for_ga = False  # the loss is a mean over decisions, so accumulation has to divide it

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Eq. 3 by the wrapped model's own forward, so that the hooks of distributed training fire.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        outputs = model(**inputs)
        if not torch.isfinite(outputs.loss):
            raise FloatingPointError(
                f"The loss is {outputs.loss.item()} at step {self.state.global_step}. "
                "Lower learning_rate, or train with bf16=False."
            )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _send_telemetry(self) -> None:
        """Nothing is reported to anybody."""


class KeepBest(TrainerCallback):
    """Keeps the best trainable weights in memory and stops when validation HR@1 no longer rises.

    The trainer's own ``load_best_model_at_end`` goes through PEFT's checkpoints, which leave out the
    scoring head.

    Args:
        model: The model in training.
        patience: Evaluations without a rise before training stops.
    """

    def __init__(self, model: torch.nn.Module, patience: int) -> None:
        self.model = model
        self.patience = patience
        self.curve: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The evaluation, counted from 1, whose weights are kept; 0 before the first."""
        return self.curve.index(max(self.curve)) + 1 if self.curve else 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        """Compare with the best so far."""
        self.curve.append(metrics[f"eval_{METRIC}"])
        logger.info("epoch %d: validation HR@1 %.4f", len(self.curve), self.curve[-1])
        if self.best_epoch == len(self.curve):
            self.best = {name: value.detach().cpu().clone() for name, value in self._trainable()}
        elif len(self.curve) - self.best_epoch >= self.patience:
            control.should_training_stop = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back; the last ones stay where there was no evaluation."""
        for name, value in self._trainable():
            if name in self.best:
                value.copy_(self.best[name])

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]


class ProgressBar(TrainerCallback):
    """One bar on stderr; the trainer's own writes its logs to stdout."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.bar = tqdm(
            total=state.max_steps, desc=f"recommender {self.name}", disable=not state.is_world_process_zero
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step on."""
        if self.bar is not None:
            self.bar.update(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def hits_at_1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """HR@1 of each decision, in [0, 1]; ties by expected value (DESIGN §8.5).

    >>> hits_at_1(torch.tensor([[1.0, 2.0], [3.0, 3.0], [2.0, 1.0]]), torch.tensor([1, 0, 1])).tolist()
    [1.0, 0.5, 0.0]
    """
    target = logits.gather(1, labels[:, None])
    first = (logits > target).sum(1) == 0
    return first / (logits == target).sum(1)


def train_candidates(
    model: PeftModel,
    processor: PulseScorerProcessor,
    train: Series[EncodedExample],
    validation: Series[EncodedExample],
    config: SFTConfig,
    *,
    head_learning_rate: float,
    patience: int,
    name: str,
) -> dict[str, Any]:
    """Fit the adapter and the head; the model is left with the weights that were best on validation.

    Args:
        model: The scorer with PEFT around it, its head trainable.
        processor: Packs the batches.
        train: Rows to learn from, with labels.
        validation: Rows to stop by, with labels; may be empty.
        config: TRL's settings.
        head_learning_rate: Of the scoring head; the adapter's is ``config.learning_rate``.
        patience: Evaluations without a rise before training stops.
        name: Shown on the bar.

    Returns:
        The validation HR@1 after each epoch, the kept epoch (1 is the first), steps and mean training loss.
    """
    rows = [*train, *sorted(validation, key=lambda one: one.num_tokens)]
    keep = KeepBest(model, patience)
    trainer = CandidateTrainer(
        model=model,
        args=config,
        data_collator=_collator(rows, processor),
        train_dataset=_dataset(rows, 0, len(train)),
        eval_dataset=_dataset(rows, len(train), len(rows)) if validation else None,
        processing_class=processor.tokenizer,
        compute_metrics=lambda prediction: {METRIC: float(prediction.predictions.mean())},
        preprocess_logits_for_metrics=hits_at_1,
        optimizers=(torch.optim.AdamW(_parameter_groups(model, config, head_learning_rate)), None),
        callbacks=[keep, ProgressBar(name)],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    keep.restore()
    model.eval()
    return {
        "validation_hr@1": [round(value, 6) for value in keep.curve],
        "best_epoch": keep.best_epoch,
        "steps": trainer.state.global_step,
        "training_loss": round(result.training_loss, 6),
    }


def _dataset(rows: Series[EncodedExample], start: int, stop: int) -> Dataset:
    """Places and lengths only: the tokens stay in memory as they are, nothing is prepared or copied."""
    places = range(start, stop)
    return Dataset.from_dict({"row": list(places), "length": [rows[place].num_tokens for place in places]})


def _collator(
    rows: Series[EncodedExample], processor: PulseScorerProcessor
) -> Callable[[list[dict[str, int]]], dict[str, torch.Tensor]]:
    def collate(batch: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        return processor.pack([rows[one["row"]] for one in batch])

    return collate


def _parameter_groups(model: PeftModel, config: SFTConfig, head_learning_rate: float) -> list[dict[str, Any]]:
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    adapter = [value for name, value in trainable if "lora_" in name]
    head = [value for name, value in trainable if "lora_" not in name]
    return [
        {"params": adapter, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": head, "lr": head_learning_rate, "weight_decay": 0.0},
    ]
