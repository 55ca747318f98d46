"""Stage 1 of A-LLMRec (Kim et al., KDD 2024, §4.1): item vectors and text vectors in one latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pulse_hf.models.a_llmrec.modeling_a_llmrec import PulseALLMRecModel
from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel, left_padded
from pulse_hf.training.finite import require_finite
from pulse_hf.training.sasrec import other_items

EPOCHS = 10  # original code
BATCH_SIZE = 32  # original code
LEARNING_RATE = 1e-3  # ours; the original's 1e-4 is for far more steps
ROWS_AT_ONCE = 512  # users whose events are encoded together

__all__ = ["Aligned", "align"]


@dataclass(frozen=True)
class Aligned:
    """What stage 1 learns from.

    Args:
        user_vectors: (num_targets, item_dim), frozen SASRec's vector of the user before each training target.
        targets: (num_targets,) item indices.
        item_vectors: (num_items + 1, item_dim), row 0 the padding.
        text_vectors: (num_items + 1, text_dim), likewise.
        trained: (num_items + 1,) True for items with training events.
    """

    user_vectors: Tensor
    targets: Tensor
    item_vectors: Tensor
    text_vectors: Tensor
    trained: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, sasrec: PulseSASRecModel, training: Sequence[Sequence[int]], text_vectors: Tensor) -> Aligned:
        """Read off a frozen SASRec and a frozen sentence encoder.

        Squared errors weigh the two sides as the weights say only if their numbers are of one size: both are brought
        to a root mean square of 1, the texts after their mean is taken away (texts of one shop share a direction that
        tells nothing). The user vectors take the item vectors' factor, so that dot products stay SASRec's scores.

        Args:
            sasrec: Fitted on the same training events.
            training: Training events of each user as item indices, oldest first.
            text_vectors: (num_items, text_dim) in catalogue order.

        Raises:
            ValueError: No user has two training events.
        """
        most = sasrec.config.max_events
        rows = [list(row[-most - 1 :]) for row in training if len(row) >= 2]
        if not rows:
            raise ValueError(f"a-llmrec: none of {len(training)} users has two training events to align on")
        vectors, chosen, table = [], [], sasrec.item_vectors()
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            targets = left_padded([row[1:] for row in part], most)
            vectors.append(sasrec.encode(left_padded([row[:-1] for row in part], most), table)[targets != 0])
            chosen.append(targets[targets != 0])
        trained = torch.zeros(sasrec.config.num_items + 1, dtype=torch.bool)
        trained[[index for row in training for index in row]] = True
        items = table.clone()
        size = items[trained].square().mean().sqrt()
        spread = text_vectors - text_vectors.mean(0)
        texts = torch.cat([torch.zeros_like(spread[:1]), spread / spread.square().mean().sqrt()])
        return cls(torch.cat(vectors) * size, torch.cat(chosen), items / size, texts, trained)


def align(model: PulseALLMRecModel, data: Aligned, *, seed: int) -> dict[str, Any]:
    """Train the two encoders and decoders in place, then keep every item's joint embedding in the model.

    Args:
        model: Its projections are left alone.
        data: Training events only.
        seed: Of batches and negatives.

    Returns:
        Mean of each loss in the first and the last epoch, and the number of steps.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = (model.item_encoder, model.item_decoder, model.text_encoder, model.text_decoder)
    optimizer = torch.optim.AdamW([one for part in parts for one in part.parameters()], lr=LEARNING_RATE)
    epochs: list[dict[str, float]] = []
    steps = 0
    for epoch in range(EPOCHS):
        totals: dict[str, float] = {}
        for rows in torch.randperm(len(data.targets), generator=generator).split(BATCH_SIZE):
            chosen = data.targets[rows]
            pairs = torch.cat([chosen[:, None], other_items(chosen, model.config.num_items, 1, generator)], dim=1)
            losses = model(data.user_vectors[rows], data.item_vectors[pairs], data.text_vectors[pairs])
            require_finite([("of the batch", losses.loss)], "loss", f"a-llmrec, stage 1, epoch {epoch + 1}")
            optimizer.zero_grad(set_to_none=True)
            losses.loss.backward()
            optimizer.step()
            steps += 1
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) * len(rows)
        epochs.append({name: round(total / len(data.targets), 6) for name, total in totals.items()})
    model.set_joint(data.item_vectors[1:], data.text_vectors[1:], data.trained[1:])
    return {"first": epochs[0], "last": epochs[-1], "steps": steps, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
