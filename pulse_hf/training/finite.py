"""The first number that is not finite stops a fit: trainers go on in silence, and save what is left."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["require_finite"]


def require_finite(tensors: Iterable[tuple[str, torch.Tensor | None]], what: str, place: str) -> None:
    """Stop where a loss, a gradient or a weight is infinite or NaN.

    Args:
        tensors: Names and values; ``None`` is passed over (a weight without a gradient).
        what: ``"loss"``, ``"gradient"`` or ``"weight"``.
        place: Where in the fit, for example ``"sasrec, epoch 3"``.

    Raises:
        FloatingPointError: One is not finite; the first is named, with how many of its numbers.

    Example:
        >>> require_finite([("bias", torch.tensor([1.0, float("nan")]))], "weight", "epoch 1")
        Traceback (most recent call last):
        FloatingPointError: epoch 1: weight bias is not finite in 1 of 2 places. Lower the learning rate.
    """
    for name, value in tensors:
        if value is None or not value.is_floating_point():
            continue
        # One sum instead of a look at every number: it is finite unless a number is not (or they overflow together).
        if torch.isfinite(value.sum()):
            continue
        wrong = int((~torch.isfinite(value)).sum())
        if wrong:
            raise FloatingPointError(
                f"{place}: {what} {name} is not finite in {wrong} of {value.numel()} places. Lower the learning rate."
            )
