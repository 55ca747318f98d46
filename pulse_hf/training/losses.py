"""The contrastive loss of the Thought Space (paper §4.1, Eq. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["has_negative", "info_nce_loss"]


def info_nce_loss(
    history: Tensor,
    rationale: Tensor,
    temperature: float,
    *,
    num_negatives: int | None = None,
    generator: torch.Generator | None = None,
    same: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    r"""Make each history find its own rationale among those of others.

    .. math::
        L = \frac1B \sum_u -\log
            \frac{e^{\cos(h_u, r_u)/\tau}}{e^{\cos(h_u, r_u)/\tau} + \sum_{v \in N(u)} e^{\cos(h_u, r_v)/\tau}}

    with :math:`h_u` the history, :math:`r_u` its rationale, :math:`N(u)` the negatives of row u: rationales
    of other rows in the batch. Computed in float32 as a log-sum-exp, so it stays finite for any
    temperature >= 0.01 in any input dtype.

    Args:
        history: (batch, dim); need not be of unit length.
        rationale: (batch, dim); row i belongs to history i.
        temperature: :math:`\tau` > 0.
        num_negatives: Negatives drawn per row without replacement (paper: 10); all that there are if
            there are fewer, or if ``None``.
        generator: Source of the draw, on the CPU; needed when ``num_negatives`` is given.
        same: Group ids, (batch,) or (batch, kinds), e.g. user and target item. Rows that share an id of
            one kind are never negatives of each other (false negatives).
        symmetric: Also make each rationale find its history, and take the mean of both.

    Returns:
        Scalar, >= 0. A row that has no negative is left out of the mean.

    Raises:
        ValueError: Shapes differ, the temperature is not positive, the batch has one row (its loss is 0
            whatever the vectors are), or no row has a negative.

    Relations:
        With ``num_negatives=None``, ``same=None`` this is sentence-transformers'
        ``MultipleNegativesRankingLoss`` with scale 1/temperature.

    Example:
        >>> import math, torch
        >>> zeros = torch.zeros(4, 8)
        >>> math.isclose(info_nce_loss(zeros, zeros, 0.05).item(), math.log(1 + 3), rel_tol=1e-6)
        True
        >>> draw = torch.Generator().manual_seed(0)
        >>> loss = info_nce_loss(zeros, zeros, 0.05, num_negatives=2, generator=draw)
        >>> math.isclose(loss.item(), math.log(1 + 2), rel_tol=1e-6)
        True
    """
    import torch
    from torch.nn import functional

    if history.shape != rationale.shape or history.dim() != 2:
        raise ValueError(
            f"Found shapes {tuple(history.shape)} and {tuple(rationale.shape)}, expected two equal (batch, dim)."
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected > 0.")
    if len(history) < 2:
        raise ValueError(
            "Found a batch of 1, expected at least 2 rows: without negatives there is nothing to learn from."
        )
    if num_negatives is not None and (num_negatives < 1 or generator is None):
        raise ValueError(f"num_negatives={num_negatives} needs a value >= 1 and a torch.Generator to draw with.")
    with torch.autocast(history.device.type, enabled=False):
        # eps: a zero vector has cosine 0 with everything and a finite gradient.
        cosines = (
            functional.normalize(history.float(), dim=-1, eps=1e-6)
            @ functional.normalize(rationale.float(), dim=-1, eps=1e-6).T
        )
    logits = cosines / temperature
    allowed = _allowed_negatives(len(history), same).to(history.device)
    if not allowed.any():
        raise ValueError(
            "All rows of the batch share a group: there is no negative. Use larger or better mixed batches."
        )
    loss = _one_way(logits, allowed, num_negatives, generator)
    if symmetric:
        loss = (loss + _one_way(logits.T, allowed, num_negatives, generator)) / 2
    return loss


def has_negative(same: Tensor) -> bool:
    """Whether :func:`info_nce_loss` has anything to tell apart in a batch: two rows that share no group.

    Args:
        same: Group ids, as it takes them.

    Example:
        >>> import torch
        >>> has_negative(torch.tensor([3, 3])), has_negative(torch.tensor([3, 3, 4]))
        (False, True)
    """
    return bool(_allowed_negatives(len(same), same).any())


def _allowed_negatives(batch: int, same: Tensor | None) -> Tensor:
    import torch

    if same is None:
        return ~torch.eye(batch, dtype=torch.bool)
    groups = same if same.dim() == 2 else same.unsqueeze(1)
    if len(groups) != batch:
        raise ValueError(f"same has {len(groups)} rows, expected one per row of the batch ({batch}).")
    shared = (groups.unsqueeze(0) == groups.unsqueeze(1)).any(-1)  # [B, B]; a row shares with itself
    return ~shared


def _one_way(logits: Tensor, allowed: Tensor, num_negatives: int | None, generator: torch.Generator | None) -> Tensor:
    import torch

    chosen = allowed
    if num_negatives is not None and num_negatives < len(logits) - 1:
        # The k smallest of random keys are k draws without replacement; keys of what is not allowed sort last.
        keys = torch.rand(logits.shape, generator=generator).to(logits.device).masked_fill(~allowed, 2.0)
        drawn = keys.argsort(dim=1)[:, :num_negatives]
        chosen = torch.zeros_like(allowed).scatter_(1, drawn, True) & allowed
    positive = logits.diagonal()
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    total = logits.masked_fill(~(chosen | own), float("-inf")).logsumexp(1)
    return (total - positive)[chosen.any(1)].mean()
