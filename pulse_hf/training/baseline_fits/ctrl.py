"""``ctrl``: SASRec whose user vectors were first aligned with a text encoder's of the same history (CTRL).

Li et al., "CTRL: Connect collaborative and language model for CTR prediction", 2023. Stage 1 aligns the two models by
a contrastive loss both ways, with a fine-grained similarity: each vector is mapped to several sub-spaces, and every
sub-vector counts with the most alike of the other side's. Stage 2 tunes the collaborative model alone. Departures:

* the collaborative model is SASRec, so what is aligned is a user's vector, not one of a user and an item, and the
  prompt is the titles of the user's last training events;
* sub-vectors have unit length and are averaged; users with the same text are no negatives of each other;
* only the encoder's upper layers train; stage 1 has the Thought Space's epochs and batches, over a sample of users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pulse_hf.metrics import rank_metrics
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.models.sasrec.modeling_sasrec import left_padded
from pulse_hf.reasoning.titles import history_titles
from pulse_hf.schema import stable_hash
from pulse_hf.training.baseline_fits.text_tower import TextTower
from pulse_hf.training.finite import require_finite
from pulse_hf.training.sasrec import sasrec_config
from pulse_hf.training.thought_space_fit import length_batches

if TYPE_CHECKING:
    from pulse_hf.training.baseline_fits.material import Material

__all__ = ["align", "contrastive_loss", "ctrl", "fine_grained"]

SUB_SPACES = 4  # ours
TEMPERATURE = 0.05  # ours: of 0.05, 0.1, 0.3 and 0.7 by Gift Cards' validation NDCG@10, where they differ by 0.004
MAX_USERS = 5_000  # ours: of stage 1


def ctrl(material: Material) -> dict[str, Any]:
    """Fit and save ``ctrl``: stage 1, then SASRec's own fit from its weights.

    Args:
        material: Data and budgets.

    Returns:
        The second stage's report, and what the first one did as ``alignment``.
    """
    aligned, record = align(material)
    fits = material.fits()
    fits.fit("ctrl", start=aligned)
    return {**fits.reports["ctrl"], "alignment": record}


def align(material: Material) -> tuple[PulseSASRecModel, dict[str, Any]]:
    """Stage 1: make a user's vector and the encoded titles of the same history alike.

    Args:
        material: Data and budgets; of each user only the training events are read.

    Returns:
        The aligned SASRec, and its record: users, mean loss of each epoch, and how well users find their own text
        among those of others (MRR on at most the Thought Space's ``max_validation_pairs``) before and after.

    Raises:
        FloatingPointError: The loss became infinite or NaN.
    """
    seed = stable_hash("ctrl-align", material.seed) % 2**31
    index = {item.item_id: place for place, item in enumerate(material.items, start=1)}
    training = [one.training() for one in material.sequences]
    training = [one for one in training if one.item_ids]
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(training))[:MAX_USERS].tolist())
    rows = [[index[item_id] for item_id in training[place].item_ids] for place in chosen]
    texts = [history_titles(training[place], material.item_of, material.num_titles) for place in chosen]
    tower = TextTower(material.space, texts)
    device = tower.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = PulseSASRecModel(sasrec_config(len(index), material.sequential)).to(device)
        pair = _Pair(model, tower, _Heads(model.config.dim, tower.dim).to(device), rows, texts)
        looked_at = _distinct(texts, material.space.max_validation_pairs)
        before = pair.mrr(looked_at)
        losses = pair.fit(material, rng)
        record = {"users": len(rows), "losses": losses, "mrr": {"before": before, "after": pair.mrr(looked_at)}}
    return model.eval(), record


class _Heads(nn.Module):
    """Both sides' maps into the sub-spaces; needed in stage 1 only."""

    def __init__(self, user_dim: int, text_dim: int) -> None:
        super().__init__()
        self.users = nn.Linear(user_dim, user_dim)
        self.texts = nn.Linear(text_dim, user_dim)


@dataclass
class _Pair:
    """The two models over the same users.

    Args:
        model: The collaborative one.
        tower: The text encoder.
        heads: Maps into the sub-spaces.
        rows: Each user's training events as item indices.
        texts: Each user's text.
    """

    model: PulseSASRecModel
    tower: TextTower
    heads: _Heads
    rows: list[list[int]]
    texts: list[str]

    def fit(self, material: Material, rng: np.random.Generator) -> list[float]:
        """Train both; the mean loss of each epoch."""
        settings, space = material.sequential, material.space
        groups = [
            {"params": [*self.model.parameters(), *self.heads.parameters()], "lr": settings.learning_rate},
            {"params": list(self.tower.trained().values()), "lr": space.encoder_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        lengths, history = self.tower.lengths(self.texts), []
        for epoch in range(space.epochs):
            self.model.train()
            losses = []
            for batch in length_batches(lengths, space.batch_size, rng):
                loss = contrastive_loss(*self.vectors(batch.tolist()), same=self._same(batch.tolist()))
                require_finite([("of the batch", loss)], "loss", f"ctrl, alignment, epoch {epoch + 1}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            history.append(round(float(np.mean(losses)), 6))
        return history

    def vectors(self, places: list[int]) -> tuple[Tensor, Tensor]:
        """Sub-vectors of users and of their texts, each (n, sub-spaces, dim / sub-spaces)."""
        item_indices = left_padded([self.rows[place] for place in places], self.model.config.max_events)
        users = self.model(item_indices.to(self.model.device)).last_hidden_state[:, -1]
        texts = self.tower.embed([self.texts[place] for place in places])
        shape = (len(places), SUB_SPACES, -1)
        return self.heads.users(users).view(shape), self.heads.texts(texts).view(shape)

    def _same(self, places: list[int]) -> Tensor:
        number: dict[str, int] = {}
        ids = torch.tensor([number.setdefault(self.texts[place], len(number)) for place in places])
        return (ids[:, None] == ids).to(self.model.device)

    @torch.no_grad()
    def mrr(self, places: list[int]) -> float:
        """Mean reciprocal rank of a user's own text among those of all places."""
        self.model.eval()
        similar = fine_grained(*self.vectors(places))
        found = rank_metrics(list(similar.cpu().numpy()), list(range(len(places))), system="ctrl, alignment")
        return round(float(found["mrr"].mean()), 6)


def _distinct(texts: list[str], most: int) -> list[int]:
    """Places of the first texts that differ."""
    return list({text: place for place, text in reversed(list(enumerate(texts)))}.values())[::-1][:most]


def fine_grained(left: Tensor, right: Tensor) -> Tensor:
    """How alike each left vector is to each right one, by the most alike sub-vectors.

    Args:
        left: (n, sub-spaces, dim).
        right: (m, sub-spaces, dim).

    Returns:
        (n, m) in [-1, 1]: the mean over left sub-vectors of the highest cosine with one on the right.

    >>> left = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> fine_grained(left, left.flip(1)).tolist(), fine_grained(left, -left).tolist()
    ([[1.0]], [[0.0]])
    """
    left, right = functional.normalize(left, dim=-1, eps=1e-6), functional.normalize(right, dim=-1, eps=1e-6)
    cosines = torch.einsum("nsd,mtd->nmst", left, right)
    return cosines.amax(-1).mean(-1)


def contrastive_loss(users: Tensor, texts: Tensor, *, same: Tensor) -> Tensor:
    """InfoNCE from users to texts and from texts to users, the mean of both.

    Args:
        users: (n, sub-spaces, dim).
        texts: (n, sub-spaces, dim), row i belongs to user i.
        same: (n, n) True where two rows have the same text and are no negatives of each other.

    Returns:
        A scalar >= 0.
    """
    own = torch.arange(len(users), device=users.device)
    hidden = same.clone().fill_diagonal_(False)
    ways = (fine_grained(users, texts), fine_grained(texts, users))
    losses = [functional.cross_entropy((way / TEMPERATURE).masked_fill(hidden, -torch.inf), own) for way in ways]
    return (losses[0] + losses[1]) / 2
