"""What people may send: every value from outside passes here before anything else sees it."""

from __future__ import annotations

from collections.abc import Sequence

from pulse_hf.data.item_text import clean_text
from pulse_hf.recommender import Event

MAX_EVENTS = 50
MAX_TITLE_CHARS = 300
MAX_WORDS_CHARS = 2_000
MAX_REASON_CHARS = 600
MAX_QUERY_CHARS = 200


class RefusedError(ValueError):
    """A request that is not served; the message is a sentence for the person who sent it, without their text."""


def one_text(value: object, name: str, max_chars: int) -> str:
    """A cleaned text within its bound: no markup, control or invisible characters.

    Args:
        value: Anything.
        name: What to call it in a refusal.
        max_chars: The longest text taken, before cleaning.

    Raises:
        RefusedError: It is no text or too long.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RefusedError(f"{name} must be text, but a {_kind(value)} came.")
    if len(value) > max_chars:
        raise RefusedError(f"{name} has {len(value):,} characters; at most {max_chars:,} are taken.")
    return clean_text(value)


def read_history(titles: object, words: object = None) -> list[Event]:
    """A history, oldest first, from titles or item ids and what was said about each.

    Raises:
        RefusedError: It is empty, too long, of another type, or has more words than titles.
    """
    names = _texts(titles, "The history", "A title", MAX_TITLE_CHARS)
    said = _texts([] if words is None else words, "The list of words", "A comment", MAX_WORDS_CHARS)
    if not names:
        raise RefusedError("The history is empty; give at least one title or item id.")
    if not all(names):
        raise RefusedError("A title of the history holds no readable character.")
    if len(said) > len(names):
        raise RefusedError(f"There are {len(said)} comments for {len(names)} titles; give at most one for each.")
    said += [""] * (len(names) - len(said))
    return [Event(name, review=text) for name, text in zip(names, said, strict=True)]


def read_reason(value: object) -> str:
    """A reason as one clean line, ``""`` for none."""
    return one_text(value, "The reason", MAX_REASON_CHARS)


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """A whole number within its range.

    Raises:
        RefusedError: It is another type or outside the range.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise RefusedError(f"{name} must be a whole number from {low} to {high}, but a {_kind(value)} came.")
    number = int(value)  # type: ignore[call-overload]
    if not low <= number <= high:
        raise RefusedError(f"{name} must be from {low} to {high}.")
    return number


def _texts(value: object, name: str, part: str, max_chars: int) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RefusedError(f"{name} must be a list of texts, but a {_kind(value)} came.")
    if len(value) > MAX_EVENTS:
        raise RefusedError(f"{name} has {len(value)} entries; at most {MAX_EVENTS} are taken.")
    return [one_text(one, part, max_chars) for one in value]


def _kind(value: object) -> str:
    kinds = {bool: "truth value", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return kinds.get(type(value), "value of another kind" if value is not None else "missing value")
