"""Ranges of settings: what cannot work is refused when it is set, not when its stage is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def at_least(record: Any, least: float, *names: str) -> None:
    """Refuse settings below a bound; ``None``, which stands for no limit, passes.

    Args:
        record: A record of settings.
        least: The lowest value that can work.
        names: The settings.

    Raises:
        ValueError: One is lower; it is named.

    Example:
        >>> from types import SimpleNamespace
        >>> at_least(SimpleNamespace(epochs=0, batch_size=8), 1, "batch_size", "epochs")
        Traceback (most recent call last):
        ValueError: epochs is 0, expected at least 1.
    """
    for name in names:
        value = getattr(record, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value}, expected at least {least:g}.")


def above(record: Any, bound: float, *names: str) -> None:
    """Refuse settings that are not above a bound; ``None`` passes."""
    for name in names:
        value = getattr(record, name)
        if value is not None and not value > bound:
            raise ValueError(f"{name} is {value}, expected a number above {bound:g}.")


def shares(record: Any, *names: str, below_one: bool = False) -> None:
    """Refuse settings that are not shares from 0 to 1 (with ``below_one``: from 0 to below 1)."""
    for name in names:
        value = getattr(record, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise ValueError(f"{name} is {value}, expected a share from 0 to {'below 1' if below_one else '1'}.")


def one_of(record: Any, name: str, known: Sequence[str]) -> None:
    """Refuse a word that means nothing."""
    value = getattr(record, name)
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}.")


def some_of(record: Any, name: str, known: Sequence[str]) -> None:
    """Refuse words that mean nothing, or that stand twice."""
    values = list(getattr(record, name))
    unknown = [value for value in values if value not in known]
    if unknown:
        raise ValueError(f"{name}: found {unknown}, expected some of {', '.join(known)}.")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{name}: found {twice} twice, expected each once.")
