"""TRL's SFTTrainer with Eq. 3 as its loss: cross-entropy over the candidates of a decision."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Series
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from pulse_hf.artifacts import (
    num_processes,
    process,
    read_json,
    read_tensors,
    seal,
    sealed,
    tell_all,
    wait_for_all,
    whole_batch,
    write_json,
    write_tensors,
)
from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor
from pulse_hf.training.finite import require_finite
from pulse_hf.training.resume import prefixed, unprefixed

logger = logging.getLogger(__name__)

METRIC = "hr@1"
_TENSORS, _CURVE = "pulse.safetensors", "pulse.json"
_WITHIN_EPOCH_S = 300  # ours: about what a kill within an epoch may cost


class RepeatableOrder(Sampler[int]):
    """An epoch's order, which can be drawn again by a fit that goes on in the middle of the epoch.

    The sampler beneath draws from torch's global generator; what was drawn after it is the trainer's to put back. Of
    several processes all draw from process 0's: on a CPU dropout draws from it, too, as much as a batch is large.
    """

    def __init__(self) -> None:
        self.beneath: Any = ()
        self.drawn_from = torch.get_rng_state()
        self.draw_from: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.beneath)

    def __iter__(self) -> Iterator[int]:
        if self.draw_from is not None:
            torch.set_rng_state(self.draw_from)
            self.draw_from = None
        if num_processes() > 1:
            state = tell_all(torch.get_rng_state().tolist())
            torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))
        self.drawn_from = torch.get_rng_state()
        return iter(list(self.beneath))


class CandidateTrainer(SFTTrainer):
    """Trains a packed scorer; all that differs from SFT is the loss and the collator."""

    loss_is_scaled_for_ga = False  # the loss is a mean over decisions, so accumulation has to divide it
    # Of every training batch, and of every epoch; KeepBest carries both over an interruption.
    losses: list[float]
    order: RepeatableOrder

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
        require_finite([("of the batch", outputs.loss)], "loss", f"scorer, step {self.state.global_step + 1}")
        if model.training:
            loss = outputs.loss.detach()
            if num_processes() > 1:
                loss = self.accelerator.reduce(loss.clone(), "mean")
            self.losses.append(float(loss))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """Rows of like length by whole steps, not by each process's part of them: the order is that of one process."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= num_processes()
        self.order.beneath = sampler
        return self.order

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
        self.losses: list[float] = []
        self.order = RepeatableOrder()
        self.saved = time.monotonic()
        self.signalled: Callable[[], bool] = lambda: False

    @property
    def exhausted(self) -> bool:
        """Whether validation HR@1 has not risen for ``patience`` evaluations."""
        return len(self.curve) - self.best_epoch >= self.patience

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
            self.best = {name: value.detach().cpu().clone() for name, value in trainable(self.model)}
        elif self.exhausted:
            control.should_training_stop = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a gradient that is not finite gets into the weights."""
        gradients = ((name, value.grad) for name, value in trainable(self.model))
        require_finite(gradients, "gradient", f"scorer, step {state.global_step + 1}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint within a long epoch, or before a signal takes effect.

        The one at an epoch's end follows its evaluation.
        """
        stop, late = tell_all((self.signalled(), time.monotonic() - self.saved >= _WITHIN_EPOCH_S))
        control.should_training_stop |= stop
        if (stop or late) and not _ends_epoch(state):
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A signal within an epoch ends the loop, too, but not the epoch: nothing is evaluated."""
        if not _ends_epoch(state):
            control.should_evaluate = control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add to the trainer's checkpoint what it leaves out (head, best weights, curve), and seal it."""
        self.saved = time.monotonic()
        wait_for_all()  # every process writes its random state into the folder
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        now = {name: value.detach() for name, value in trainable(self.model)}
        require_finite(now.items(), "weight", f"scorer, step {state.global_step}")
        order = {} if _ends_epoch(state) else {"drawn_from": self.order.drawn_from}
        kept = {**prefixed("now", now), **prefixed("best", self.best), **prefixed("order", order)}
        write_tensors(folder / _TENSORS, kept)
        write_json(folder / _CURVE, {"curve": self.curve, "losses": self.losses})
        seal(folder)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint."""
        tensors = read_tensors(folder / _TENSORS)
        self.best = unprefixed("best", tensors)
        self.order.draw_from = unprefixed("order", tensors).get("drawn_from")
        beside = read_json(folder / _CURVE)
        self.curve, self.losses[:] = list(beside["curve"]), beside["losses"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a resume the head is put back, too: PEFT's checkpoints leave it out."""
        if state.global_step:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self._put(unprefixed("now", read_tensors(folder / _TENSORS)))

    def restore(self) -> None:
        """Put the best weights back; the last ones stay where there was no evaluation."""
        self._put(self.best)
        require_finite(trainable(self.model), "weight", "scorer, at the end")

    @torch.no_grad()
    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, value in trainable(self.model):
            if name in weights:
                value.copy_(weights[name])


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()


def trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that train, by name."""
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a trainer; torn ones are taken away with a warning.

    The trainer itself would take the newest folder, whole or not.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        if sealed(path):
            return path
        logger.warning("%s is torn; going on from an older checkpoint", path)
        shutil.rmtree(path)
    return None


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
            total=state.max_steps,
            initial=state.global_step,  # of a fit that goes on
            desc=f"recommender {self.name}",
            disable=not state.is_world_process_zero,
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
    """HR@1 of each decision, in [0, 1]; ties by expected value.

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
        The validation HR@1 after each epoch, the kept epoch (1 is the first), training batches and their mean
        loss.
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
    trainer.losses, trainer.order = keep.losses, keep.order
    checkpoint = tell_all(newest_checkpoint(Path(str(config.output_dir))) if process() == 0 else None)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
        keep.load(checkpoint)
    if not (validation and (len(keep.curve) >= config.num_train_epochs or (keep.curve and keep.exhausted))):
        with whole_batch() as keep.signalled:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    keep.restore()
    model.eval()
    return {
        "validation_hr@1": [round(value, 6) for value in keep.curve],
        "best_epoch": keep.best_epoch,
        "batches": len(keep.losses),
        "training_loss": round(sum(keep.losses) / len(keep.losses), 6),
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
    named = trainable(model)
    adapter = [value for name, value in named if "lora_" in name]
    head = [value for name, value in named if "lora_" not in name]
    return [
        {"params": adapter, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": head, "lr": head_learning_rate, "weight_decay": 0.0},
    ]
