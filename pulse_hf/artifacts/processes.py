"""Several processes of one launch (``torchrun``): who this is, waiting for the others, telling them.

One process alone costs nothing: torch and accelerate are imported only where there are others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # while process 0 makes what only one can make, the others wait

__all__ = ["dealt", "num_processes", "process", "tell_all", "wait_for_all"]


def process() -> int:
    """This process's number, from 0; process 0 writes what all have in common."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if num_processes() > 1:
        _state().wait_for_everyone()


def tell_all(value: Any) -> Any:
    """What process 0 passes in, in every process; plain Python values only."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    told = [value]
    broadcast_object_list(told, from_process=0)
    return told[0]


def dealt(rows: Sequence[T], batch_size: int) -> list[Sequence[T]]:
    """This process's share of the batches: those that one process alone would make, dealt out in turn.

    So a row is always made in the same company, and comes out the same whatever the number of processes.
    """
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches[process() :: num_processes()]


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
