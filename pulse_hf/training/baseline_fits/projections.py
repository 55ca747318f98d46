"""Stage 2 of A-LLMRec (Kim et al., KDD 2024, §4.2): soft tokens that a frozen language model can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from pulse_hf.artifacts import Checkpoints
from pulse_hf.metrics import rank_metrics
from pulse_hf.models.a_llmrec.soft_prompts import SoftPromptProcessor
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import EncodedExample, score_encoded
from pulse_hf.training.finite import require_finite
from pulse_hf.training.resume import fit_state, restore_fit
from pulse_hf.training.scorer import RecommenderSettings
from pulse_hf.training.scorer_fit import uses_bf16
from pulse_hf.training.thought_space_fit import length_batches, num_batches

LEARNING_RATE = 3e-3  # chosen on validation (Gift Cards, HR@1 .336; .327 with 1e-3)

__all__ = ["ProjectionFit"]


class ProjectionFit:
    """The fit of whatever parameters of a soft scorer still require a gradient.

    Args:
        scorer: The frozen language model with the projections inside its token embedding.
        processor: Packs the batches.
        settings: The scorer's: epochs, batches, patience.
        seed: Of the batches.
    """

    def __init__(
        self, scorer: PulseScorerModel, processor: SoftPromptProcessor, settings: RecommenderSettings, seed: int
    ) -> None:
        self.scorer, self.processor, self.settings = scorer.eval(), processor, settings
        self.trained = {name: value for name, value in scorer.named_parameters() if value.requires_grad}
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.curve: list[float] = []
        self.losses: list[float] = []

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, with the best validation HR@1; 0 without any."""
        return self.curve.index(max(self.curve)) + 1 if self.curve else 0

    def fit(
        self, train: Sequence[EncodedExample], validation: Sequence[EncodedExample], checkpoints: Checkpoints
    ) -> dict[str, Any]:
        """Train by cross-entropy over candidates (Eq. 3); the best epoch's weights stay, or the last one's.

        Args:
            train: Rows to learn from, with labels.
            validation: Rows to stop by, with labels; may be empty.
            checkpoints: Where the fit keeps its state, and goes on from if it was killed; the result is the same.

        Raises:
            FloatingPointError: A loss or a gradient is not finite; the step is named.
        """
        settings = self.settings
        optimizer = torch.optim.AdamW(self.trained.values(), lr=LEARNING_RATE, weight_decay=settings.weight_decay)
        steps = settings.epochs * num_batches(len(train), settings.batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
        begin, best = self._resumed(checkpoints, optimizer, schedule)
        for epoch in range(begin, settings.epochs + 1):
            if len(self.curve) - self.best_epoch >= settings.patience and self.curve:
                break
            self._epoch(train, optimizer, schedule, epoch)
            if validation:
                self.curve.append(self._hit_rate(validation))
            if self.best_epoch == len(self.curve):
                best = self._weights()
            if checkpoints.due() or epoch == settings.epochs:
                rates = [group["lr"] for group in optimizer.param_groups]
                beside = {
                    "curve": self.curve,
                    "losses": self.losses,
                    "batches": self.rng.bit_generator.state,
                    "steps": schedule.last_epoch,
                    "rates": rates,
                }
                checkpoints.save(epoch, fit_state(self._weights(), best, optimizer, self.generator), beside)
        self._put(best)
        require_finite(self.trained.items(), "weight", "a-llmrec, stage 2")
        return {
            "validation_hr@1": [round(value, 6) for value in self.curve],
            "best_epoch": self.best_epoch,
            "batches": len(self.losses),
            "training_loss": round(float(np.mean(self.losses)), 6),
            "learning_rate": LEARNING_RATE,
            "rows": len(train),
            "validation_rows": len(validation),
            "tokens_per_epoch": sum(one.num_tokens for one in train),
        }

    def _epoch(
        self, train: Sequence[EncodedExample], optimizer: torch.optim.Optimizer, schedule: Any, epoch: int
    ) -> None:
        device = self.scorer.device
        lengths = [one.num_tokens for one in train]
        batches = list(length_batches(lengths, self.settings.batch_size, self.rng))
        for rows in tqdm(batches, desc=f"a-llmrec, epoch {epoch}", leave=False):
            packed = self.processor.pack([train[row] for row in rows])
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(self.settings)):
                loss = self.scorer(**{name: tensor.to(device) for name, tensor in packed.items()}).loss
            place = f"a-llmrec, stage 2, step {len(self.losses) + 1}"
            require_finite([("of the batch", loss)], "loss", place)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            require_finite(((name, one.grad) for name, one in self.trained.items()), "gradient", place)
            nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
            optimizer.step()
            schedule.step()
            self.losses.append(round(loss.item(), 6))

    def _hit_rate(self, validation: Sequence[EncodedExample]) -> float:
        size, bf16 = self.settings.eval_batch_size, uses_bf16(self.settings)
        scores = score_encoded(self.scorer, self.processor, validation, size, bf16=bf16)
        targets = [one.label for one in validation if one.label is not None]
        return float(rank_metrics([np.array(row) for row in scores], targets, system="a-llmrec")["hr@1"].mean())

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.trained.items()}

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.trained.items():
            value.copy_(weights[name])

    def _resumed(
        self, checkpoints: Checkpoints, optimizer: torch.optim.Optimizer, schedule: Any
    ) -> tuple[int, dict[str, Tensor]]:
        """The epoch to go on with and the best weights so far."""
        found = checkpoints.newest()
        if found is None:
            return 1, self._weights()
        epoch, tensors, beside = found
        weights, best = restore_fit(tensors, optimizer, beside["rates"], self.generator)
        self._put(weights)
        self.rng.bit_generator.state = beside["batches"]
        schedule.last_epoch = beside["steps"]
        self.curve, self.losses = list(beside["curve"]), list(beside["losses"])
        return epoch + 1, best
