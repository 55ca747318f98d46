"""The behavioural text b_u that the history encoder reads (paper §4.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pulse_hf.schema import Item, Sequence

MASK = "item"
_WORD = re.compile(r"[^\W_]+")


def behaviour_text(
    history: Sequence,
    items: Mapping[str, Item],
    *,
    target: str | None,
    max_events: int,
    review_words: int,
    mask_titles: bool = False,
) -> str:
    """The user's recent choices and words as one text, most recent first.

    Most recent first, because an encoder that truncates then loses the oldest.

    Args:
        history: Events the decision may see.
        items: The catalogue.
        target: The chosen item, only while *training* with ``behaviour="paper"``; ``None`` everywhere else.
        max_events: Events told.
        review_words: Words of each review.
        mask_titles: Replace every title by a fixed word, so that matching cannot rest on titles.

    Returns:
        One line of text.
    """
    parts = [] if target is None else [MASK if mask_titles else items[target].title]
    recent = list(zip(history.item_ids, history.reviews, strict=True))[-max_events:]
    for item_id, review in reversed(recent):
        title = MASK if mask_titles else items[item_id].title
        words = " ".join(review.split()[:review_words])
        parts.append(f"{title}: {words}" if words else title)
    return ". ".join(parts)


def mask_words(text: str, titles: Iterable[str]) -> str:
    """Replace every word of the titles in a rationale by a fixed word (DESIGN §8.2).

    >>> mask_words("They chose the Norvik kettle for quiet.", ["Norvik Kettle"])
    'They chose the item item for quiet.'
    """
    named = {word.lower() for title in titles for word in _WORD.findall(title) if len(word) > 2}
    return _WORD.sub(lambda match: MASK if match[0].lower() in named else match[0], text)
