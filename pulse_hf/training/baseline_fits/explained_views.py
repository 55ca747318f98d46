"""Which events a prediction rests on, and views of a history that keep or lose them (Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel, left_padded
from pulse_hf.training.baseline_fits.contrast import History, drawn

POSITIVE_SHARE = 0.3  # of the events, the least important ones, altered in a positive view (the authors' code)
NEGATIVE_SHARE = 0.7  # of the events, the most important ones, lost in a negative view (the authors' code)

__all__ = ["importance", "negative_view", "positive_view", "with_mask"]


def importance(
    model: PulseSASRecModel, histories: Sequence[History], targets: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """Saliency of each event: how strongly the target's score depends on its input item vector.

    The absolute gradient, summed over the vector and divided by the history's sum. The model is looked at without
    dropout, is left in the mode it was in, and its parameters' gradients are not touched.

    Args:
        model: SASRec under way.
        histories: Item indices, oldest first, at most ``max_events`` each.
        targets: The item index that followed each.

    Returns:
        For each history a weight per event, with sum 1 (or all 0 where nothing depends on anything).
    """
    item_indices = left_padded(histories, model.config.max_events).to(model.device)
    catalogue = model.item_vectors().detach()
    real = item_indices != 0
    # Every event gets a row of its own, so that the same item at two places has two gradients.
    events = catalogue[item_indices[real]].requires_grad_()
    places = torch.zeros_like(item_indices)
    places[real] = torch.arange(1, len(events) + 1, device=model.device)
    trained = model.training
    model.eval()
    users = model.encode(places, torch.cat([catalogue[:1], events]))[:, -1]
    (gradient,) = torch.autograd.grad((users * catalogue[list(targets)]).sum(), events)
    model.train(trained)
    parts = gradient.abs().sum(1).split([len(history) for history in histories])
    return tuple(tuple((part / part.sum().clamp_min(1e-12)).tolist()) for part in parts)


def with_mask(model: PulseSASRecModel) -> tuple[Tensor, int]:
    """The item vectors and one of zeros behind them, and its index: the masked event.

    Args:
        model: SASRec.

    Returns:
        (num_items + 2, dim) and num_items + 1.
    """
    vectors = model.item_vectors()
    return torch.cat([vectors, torch.zeros_like(vectors[:1])]), len(vectors)


def positive_view(history: History, weights: Sequence[float], mask: int) -> History:
    """Crop, mask or reorder (drawn) the least important events; none of up to three events.

    Args:
        history: Item indices, oldest first.
        weights: The importance of each.
        mask: Index of the masked event.
    """
    number = int(POSITIVE_SHARE * len(history))
    least = sorted(sorted(range(len(history)), key=lambda place: weights[place])[:number])
    match drawn(3):
        case 0:
            return tuple(item for place, item in enumerate(history) if place not in least)
        case 1:
            return _masked(history, least, mask)
        case _:
            changed = list(history)
            for place, other in zip(least, torch.randperm(number).tolist(), strict=True):
                changed[place] = history[least[other]]
            return tuple(changed)


def negative_view(history: History, weights: Sequence[float], mask: int) -> History:
    """Crop or mask (drawn) the most important events, one at least; an only event is masked, never cropped.

    Args:
        history: Item indices, oldest first.
        weights: The importance of each.
        mask: Index of the masked event.
    """
    number = max(1, int(NEGATIVE_SHARE * len(history)))
    most = sorted(range(len(history)), key=lambda place: -weights[place])[:number]
    if drawn(2) == 0 and number < len(history):
        return tuple(item for place, item in enumerate(history) if place not in most)
    return _masked(history, most, mask)


def _masked(history: History, places: Sequence[int], mask: int) -> History:
    return tuple(mask if place in places else item for place, item in enumerate(history))
