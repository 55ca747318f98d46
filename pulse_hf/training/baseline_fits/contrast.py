"""What contrastive baselines share: training instances, others with the same target, and InfoNCE between two views.

An instance is a training event with the events before it, as in the papers. Where they visit every instance once
per epoch, here each row of a batch lends one drawn instance: no two instances of a batch are one user's, who would
otherwise be pushed away from himself. All draws are from torch's global generator, as dropout's are: a fit's own
generator has to stay alike in every process, and what is drawn here depends on a process's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel, left_padded

if TYPE_CHECKING:
    from pulse_hf.training.baseline_fits.material import Material
    from pulse_hf.training.sasrec import Auxiliary

__all__ = ["SameTarget", "draw_instances", "drawn", "encode_views", "fit_contrastive", "info_nce"]

History = tuple[int, ...]


def drawn(number: int) -> int:
    """One of 0 to ``number`` - 1, each as likely, from torch's global generator."""
    return int(torch.randint(number, ()))


def draw_instances(rows: Sequence[Sequence[int]]) -> tuple[list[History], list[int]]:
    """One instance of each row.

    Args:
        rows: Training rows, item indices, oldest first, at least two each.

    Returns:
        The events before each target, and the targets.
    """
    cuts = [1 + drawn(len(row) - 1) for row in rows]
    return [tuple(row[:cut]) for row, cut in zip(rows, cuts, strict=True)], [
        row[cut] for row, cut in zip(rows, cuts, strict=True)
    ]


class SameTarget:
    """The training instances by target: the positives of supervised contrast (Qiu et al. 2022).

    Args:
        rows: Training events of every user as item indices, oldest first.
        max_length: Events of a history that a fit reads; rows are cut as it cuts them.

    Example:
        >>> same = SameTarget([[1, 2, 9], [3, 9], [4, 2]], max_length=50)
        >>> same.others((1, 2), 9), same.others((1,), 2), same.others((9,), 4)
        ([(3,)], [(4,)], [])
    """

    def __init__(self, rows: Sequence[Sequence[int]], max_length: int) -> None:
        self._histories: dict[int, list[History]] = {}
        for row in rows:
            kept = tuple(row[-max_length - 1 :])
            for cut in range(1, len(kept)):
                self._histories.setdefault(kept[cut], []).append(kept[:cut])

    def others(self, history: History, target: int) -> list[History]:
        """Histories of all other instances with this target; one equal to ``history`` is taken as itself."""
        found = list(self._histories.get(target, ()))
        if history in found:
            found.remove(history)
        return found


def encode_views(model: PulseSASRecModel, views: Sequence[History], table: Tensor | None = None) -> Tensor:
    """The user vector after each view, with gradients and in the model's mode.

    Views of like length are encoded together: a batch holds rows of like length, but what else led to a target has
    any, and one long view would pad hundreds.

    Args:
        model: SASRec under way.
        views: Indices into the table, oldest first.
        table: As :meth:`PulseSASRecModel.encode` takes it.

    Returns:
        (len(views), dim) in the order given.
    """
    table = model.item_vectors() if table is None else table
    alike: dict[int, list[int]] = {}
    for place, view in enumerate(views):
        alike.setdefault(len(view).bit_length(), []).append(place)
    parts = []
    for places in alike.values():
        item_indices = left_padded([views[place] for place in places], model.config.max_events)
        parts.append(model.encode(item_indices.to(model.device), table)[:, -1])
    order = torch.tensor([place for places in alike.values() for place in places])
    return torch.cat(parts)[order.argsort().to(model.device)]


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Make both views of an instance find each other among all views of a batch (Qiu et al. 2022).

    Each of the 2B views has one positive, its instance's other view, and 2(B - 1) negatives; similarity is the
    dot product, which is also how a user vector scores items. (The Thought Space's own loss takes cosines.)

    Args:
        first: (B, dim) one view of each instance.
        second: (B, dim) the other one.
        temperature: Divides the dot products.

    Returns:
        The mean over the 2B views, a scalar; 0 for a batch of one, which has no negatives.

    Example:
        >>> import math
        >>> equal = info_nce(torch.zeros(3, 2), torch.zeros(3, 2), 1.0)  # nothing told apart: 1 of 5
        >>> math.isclose(float(equal), math.log(5), rel_tol=1e-6)
        True
    """
    views = torch.cat([first, second])
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(itself, float("-inf"))
    partners = torch.arange(len(views), device=views.device).roll(len(first))
    return functional.cross_entropy(logits, partners)


def fit_contrastive(name: str, material: Material, make: Callable[[SameTarget], Auxiliary]) -> dict[str, Any]:
    """Fit and save a SASRec with a contrastive loss beside its softmax, with SASRec's own budget.

    Args:
        name: Folder of the model.
        material: Data and budgets.
        make: The loss, from the training instances by target.

    Returns:
        What happened and the loss's constants, for the manifest.
    """
    settings = replace(material.sequential, loss="ce")
    fits = material.fits(settings)
    loss = make(SameTarget(fits.training, settings.max_length))
    fits.fit(name, auxiliary=loss)
    return {**fits.reports[name], **{key: value for key, value in vars(loss).items() if key != "same_target"}}
