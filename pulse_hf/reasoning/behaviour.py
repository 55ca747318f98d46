"""The behavioural text b_u that the history encoder reads (paper §4.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pulse_hf.schema import Item, Sequence

NOTHING = "item"  # stands for a text of which no word is left
_WORD = re.compile(r"[^\W_]+")


def behaviour_text(
    history: Sequence,
    items: Mapping[str, Item],
    *,
    target: str | None,
    max_events: int,
    review_words: int,
    with_titles: bool = True,
) -> str:
    """The user's recent choices and words as one text, most recent first.

    Most recent first, because an encoder that truncates then loses the oldest.

    Args:
        history: Events the decision may see.
        items: The catalogue.
        target: The chosen item, only while *training* with ``behaviour="paper"``; ``None`` everywhere else.
        max_events: Events told.
        review_words: Words of each review.
        with_titles: Tell the items' titles; without them only the person's words are left.

    Returns:
        One line of text.
    """
    events = list(zip(history.item_ids, history.reviews, strict=True))
    recent = events[-max_events:] if max_events else []
    told = [(items[item_id].title, " ".join(review.split()[:review_words])) for item_id, review in reversed(recent)]
    told = told if target is None else [(items[target].title, ""), *told]
    parts = (": ".join(part for part in (title if with_titles else "", words) if part) for title, words in told)
    return ". ".join(part for part in parts if part)


def without_words(text: str, titles: Iterable[str]) -> str:
    """The words of a text that no title has.

    They are left out on both sides, not replaced: two texts with the same words replaced by the same mask match by
    their masks alone.

    >>> without_words("They chose the Norvik kettle for quiet.", ["Norvik Kettle"])
    'They chose the for quiet'
    >>> without_words("Norvik!", ["Norvik Kettle"])
    'item'
    """
    named = {word.lower() for title in titles for word in _WORD.findall(title) if len(word) > 2}
    return " ".join(word for word in _WORD.findall(text) if word.lower() not in named) or NOTHING
