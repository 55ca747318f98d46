"""``duorec`` (Qiu et al., WSDM 2022, "Contrastive learning for representation degeneration problem").

SASRec whose user vectors are also contrasted: a second dropout pass of an instance (unsupervised view) and another
training instance with the same target (supervised view) are each other's positives, the views of the other rows of
the batch are negatives (as in the authors' published run, "us_x"). The base loss is the softmax over all items, in
the paper as here.

Departures: SASRec is the house's own with its own budget (pre-norm, positions from the newest event); one instance
per row and batch is contrasted, see :mod:`~pulse_hf.training.baseline_fits.contrast`; a target seen once is its own
supervised view, by another dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel
from pulse_hf.training.baseline_fits.contrast import History, SameTarget, draw_instances, drawn, encode_views, info_nce

# Of weights 0.03, 0.1, 0.3 and 1 and temperatures 1 and 8, the best mean validation NDCG@10 of five seeds on Gift
# Cards: 0.1708 (SASRec 0.1678, the authors' 0.1 and 1 0.1608). User vectors come out of a layer norm of width 64:
# 8 is about a temperature of 1/8 for cosines.
WEIGHT = 0.3
TEMPERATURE = 8.0

__all__ = ["DuoRecLoss"]


@dataclass(frozen=True)
class DuoRecLoss:
    """The contrastive loss of a batch (Qiu et al. 2022), an ``Auxiliary`` of ``fit_sasrec``.

    Args:
        same_target: The training instances by target.
        weight: What it counts beside the recommendation loss.
        temperature: Of InfoNCE.
    """

    same_target: SameTarget
    weight: float = WEIGHT
    temperature: float = TEMPERATURE

    def __call__(self, model: PulseSASRecModel, rows: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
        """The weighted loss; ``generator`` stays untouched (see the module ``contrast``)."""
        histories, targets = draw_instances(rows)
        positives = [self.positive(*instance) for instance in zip(histories, targets, strict=True)]
        unsupervised, supervised = encode_views(model, [*histories, *positives]).chunk(2)
        return self.weight * info_nce(unsupervised, supervised, self.temperature)

    def positive(self, history: History, target: int) -> History:
        """A drawn other history that led to the same target; this one if there is no other."""
        others = self.same_target.others(history, target)
        return others[drawn(len(others))] if others else history
