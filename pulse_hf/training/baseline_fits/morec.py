"""``morec``: SASRec over item vectors of a text encoder that trains with it, no id embeddings (MoRec).

Yuan et al., "Where to go next for recommender systems? ID- vs. modality-based recommender models revisited",
SIGIR 2023, §3: an item's vector is a dense layer over its encoded text, as input and as what is scored. Departures:

* the encoder learns from in-batch negatives over at most one Thought Space batch of a batch's targets (a CPU could not
  encode them all), while SASRec and the dense layer also keep the softmax over the whole catalogue that the other rows
  have, with all vectors as encoded at the last epoch's end;
* it has half of SASRec's epochs: on a CPU they take as long as those of all other sequential baselines together;
* only the encoder's upper layers train, as many as the run's Thought Space trains, and an item's text is its title;
* text vectors are centred on the untrained encoder's mean and of unit length, as in ``sasrec+text``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.models.sasrec.modeling_sasrec import left_padded
from pulse_hf.training.baseline_fits.text_tower import TextTower

if TYPE_CHECKING:
    from pulse_hf.training.baseline_fits.material import Material

__all__ = ["TextItemsModel", "end_to_end_loss", "morec"]

_TOWER = "text_tower"


def morec(material: Material) -> dict[str, Any]:
    """Fit and save ``morec``; the epoch is chosen on validation NDCG@10, as for SASRec.

    Args:
        material: Data and budgets.

    Returns:
        The fit's report.
    """
    titles = [item.title for item in material.items]
    tower = TextTower(material.space, titles)
    with torch.no_grad():
        vectors = tower.embed(titles)
    chosen = Counter(item_id for one in material.sequences for item_id in one.training().item_ids[1:])
    shares = torch.tensor([chosen[item.item_id] for item in material.items]) / max(1, chosen.total())
    fits = material.fits(replace(material.sequential, epochs=max(1, material.sequential.epochs // 2)))
    fits.fit(
        "morec",
        text_features=vectors,
        build=partial(TextItemsModel, tower=tower, texts=titles, mean=vectors.mean(0)),
        rates={_TOWER: material.space.encoder_learning_rate},
        auxiliary=partial(end_to_end_loss, shares=shares, most=material.space.batch_size),
    )
    return dict(fits.reports["morec"])


class TextItemsModel(PulseSASRecModel):
    """A SASRec in training whose text features come from an encoder in training; it is saved as a plain SASRec.

    Args:
        config: Size and objective; ``text_dim`` is the encoder's width.
        tower: The encoder.
        texts: One per item, in catalogue order.
        mean: (text_dim,) what text vectors are centred on.
    """

    def __init__(self, config: PulseSASRecConfig, *, tower: TextTower, texts: Sequence[str], mean: Tensor) -> None:
        super().__init__(config)
        self.item_embedding.requires_grad_(False)
        # The very parameters of the encoder: what trains, is checkpointed and restored here is the encoder itself.
        trained = {name.replace(".", "-"): value for name, value in tower.trained().items()}
        self.register_module(_TOWER, nn.ParameterDict(trained))
        self.register_buffer("text_mean", mean, persistent=False)
        self.tower, self.texts = tower, list(texts)
        self.stale = True  # whether the encoder may have trained since every item was encoded

    def encoded(self, items: Sequence[int]) -> Tensor:
        """Text features (n, text_dim) of item indices by the encoder as it is now, with gradients if enabled."""
        vectors = self.tower.embed([self.texts[item - 1] for item in items])
        return functional.normalize(vectors - self.text_mean, dim=1)

    def scores(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`PulseSASRecModel.scores`, by the encoder as it is now."""
        self.refresh()
        return super().scores(histories)

    @torch.no_grad()
    def refresh(self) -> None:
        """Encode every item anew if the encoder may have trained since."""
        if self.stale:
            self.set_text_features(self.encoded(range(1, self.config.num_items + 1)))
            self.stale = False

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as a plain :class:`PulseSASRecModel` with the tuned encoder's vectors as its text features."""
        self.refresh()
        own = self.state_dict()
        plain = PulseSASRecModel(self.config)
        plain.load_state_dict({name: own[name] for name in plain.state_dict()})
        plain.save_pretrained(save_directory, *args, **kwargs)


def end_to_end_loss(
    model: PulseSASRecModel, rows: Sequence[Sequence[int]], generator: torch.Generator, *, shares: Tensor, most: int
) -> Tensor:
    """Softmax of a batch's targets over some of the batch's target items, all encoded with gradients.

    Vectors from different moments of the encoder are never compared: the fresh ones among stale ones would be told by
    their age, and those are the targets. An item's logit is corrected by its chance to be in a batch (Yi et al.,
    RecSys 2019), or popular items would be pushed down for being negatives so often.

    Args:
        model: A :class:`TextItemsModel`.
        rows: Training rows of the batch, oldest first.
        generator: Draws the items.
        shares: (num_items,) each item's share of the training targets.
        most: Items at most.

    Returns:
        A scalar; 0 with fewer than two items.
    """
    assert isinstance(model, TextItemsModel)
    model.stale = True
    item_indices, labels = (
        left_padded(part, model.config.max_events) for part in zip(*map(_shifted, rows), strict=True)
    )
    targets = labels[labels != 0]
    items = targets.unique()
    items = items[torch.randperm(len(items), generator=generator)[:most]]
    if len(items) < 2:
        return next(model.parameters()).sum() * 0
    chance = 1 - (1 - shares[items - 1]).pow(len(targets))
    place = torch.full((model.config.num_items + 1,), -1)
    place[items] = torch.arange(len(items))
    known = (place[labels] >= 0) & (labels != 0)
    vectors = model.text_projection(model.encoded(items.tolist()))
    device = model.device
    table = model.item_vectors().index_copy(0, items.to(device), vectors)
    users = model.encode(item_indices.to(device), table)[known.to(device)]
    return functional.cross_entropy(users @ vectors.T - chance.log().to(device), place[labels[known]].to(device))


def _shifted(row: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    return row[:-1], row[1:]
