"""Gradients of one global batch from several processes: each takes every n-th row, the sums are those of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from pulse_hf.artifacts import num_processes, process, wait_for_all

T = TypeVar("T")

__all__ = ["gathered", "own_rows", "sum_gradients", "summed"]


def own_rows(rows: Sequence[T]) -> Sequence[T]:
    """The rows of a batch that this process computes."""
    return rows[process() :: num_processes()]


def gathered(own: torch.Tensor, num_rows: int) -> torch.Tensor:
    """All rows of a batch in their order; gradients reach the own rows only.

    Every process computes the same loss of all rows. A row's gradient arises in the process that computed it and
    nowhere else, so the sum over processes is the gradient of the whole.

    Args:
        own: (rows of this process, dim), in the order of :func:`own_rows`.
        num_rows: Rows of the batch.

    Returns:
        (num_rows, dim).
    """
    size = num_processes()
    if size == 1:
        return own
    _join()
    most = -(-num_rows // size)
    padded = torch.zeros(most, own.shape[1], dtype=own.dtype, device=own.device)
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(size)]
    torch.distributed.all_gather(parts, padded)
    parts[process()] = torch.cat([own, padded[len(own) :]])
    # Row r of the batch is row r // size of process r % size.
    return torch.stack(parts, dim=1).flatten(0, 1)[:num_rows]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes; each then takes the same step.

    They travel as one vector: a sum takes some tenths of a millisecond however little is in it.
    """
    if num_processes() == 1:
        return
    _join()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    whole = torch.cat([gradient.flatten() for gradient in own])
    torch.distributed.all_reduce(whole)
    for parameter, part in zip(trained, whole.split([one.numel() for one in trained]), strict=True):
        parameter.grad = part.view_as(parameter)


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum of a number over all processes, without gradient."""
    total = value.detach().clone()
    if num_processes() > 1:
        _join()
        torch.distributed.all_reduce(total)
    return total


def _join() -> None:
    """Meet the other processes once; after that the sums themselves keep step."""
    if not torch.distributed.is_initialized():
        wait_for_all()
