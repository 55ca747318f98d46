"""What the learned baselines read: titles of a history, and the title of what was chosen next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pulse_hf.schema import Decision, Item, Sequence

__all__ = ["history_titles", "title_pairs"]


def history_titles(history: Sequence, items: Mapping[str, Item], num_titles: int) -> str:
    """The last titles of a history as one text, most recent first.

    Example:
        >>> items = {"a": Item("a", "Tea", "Tea"), "b": Item("b", "Cup", "Cup")}
        >>> history_titles(Sequence("u", ("a", "b"), (), (None, None), ("", "")), items, 5)
        'Cup. Tea'
    """
    return ". ".join(items[item_id].title for item_id in reversed(history.item_ids[-num_titles:]))


def title_pairs(
    sequences: Iterable[Sequence], items: Mapping[str, Item], num_titles: int
) -> Iterator[tuple[Decision, str, str]]:
    """Every training decision with its history's titles and the title chosen; the leak audit calls it, too.

    Args:
        sequences: The users.
        items: By item id.
        num_titles: Titles of a history.
    """
    from pulse_hf.data.sequences import decisions

    for sequence in sequences:
        for decision in decisions([sequence], "train"):
            text = history_titles(sequence.before(decision.position), items, num_titles)
            yield decision, text, items[sequence.item_ids[decision.position]].title
