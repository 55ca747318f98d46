"""Models are read one at a time: transformers makes room for weights by switches that hold for the whole process.

Two threads that read models at once can end with one that has no weights, or with one drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Model = TypeVar("_Model")
_TURN = RLock()

__all__ = ["one_load_at_a_time"]


def one_load_at_a_time(load: Callable[_Args, _Model]) -> Callable[_Args, _Model]:
    """Let a function that reads models wait for others of this process."""

    @wraps(load)
    def waiting(*args: _Args.args, **kwargs: _Args.kwargs) -> _Model:
        with _TURN:
            return load(*args, **kwargs)

    return waiting
