"""Which interactions count: one event for each user and item, and the iterated k-core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pulse_hf.data.sequences import order_key
from pulse_hf.schema import Interaction

if TYPE_CHECKING:
    import numpy as np


def deduplicate(events: Iterable[Interaction]) -> tuple[list[Interaction], int]:
    """Keep the first event of each user and item by time; ties as in :func:`~pulse_hf.data.sequences.order_key`.

    The first, because a repeat tells a model that it may recommend what the person already has
    (with repeats, 17 % of Luxury Beauty's targets are in the history).

    Args:
        events: Interactions in any order.

    Returns:
        The kept events, and the number of dropped ones. Which events are kept does not depend on the
        order of ``events``.

    Example:
        >>> deduplicate([Interaction("u", "a", 9), Interaction("u", "a", 3), Interaction("u", "b", 5)])
        ([Interaction(user_id='u', item_id='a', timestamp=3, rating=None, review=''), \
Interaction(user_id='u', item_id='b', timestamp=5, rating=None, review='')], 1)
    """
    first: dict[tuple[str, str], Interaction] = {}
    read = 0
    for event in events:
        read += 1
        pair = (event.user_id, event.item_id)
        known = first.get(pair)
        if known is None or order_key(event) < order_key(known):
            first[pair] = event
    return list(first.values()), read - len(first)


@dataclass
class Core:
    """What :func:`k_core` kept.

    Args:
        events: The interactions of the core, in the order they came.
        rounds: Users, items and events before the first round and after each round that dropped some.
        dropped: Reason to number of events; an event whose user and item both fall counts for its user.
    """

    events: list[Interaction]
    rounds: list[dict[str, int]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def k_core(events: list[Interaction], min_user_events: int, min_item_events: int) -> Core:
    """Drop users and items with too few events, again and again until nothing is left to drop.

    One pass is not enough: a dropped item can leave a user short. The fixed point does not depend on the
    order of users, items or events.

    Args:
        events: The interactions.
        min_user_events: Events a user must have; 0 or 1 keeps every user.
        min_item_events: Events an item must have; 0 or 1 keeps every item.

    Returns:
        The core and how it came about; its events may be none.

    Example:
        >>> chain = [Interaction("u", "a", 1), Interaction("u", "b", 2), Interaction("v", "b", 3)]
        >>> core = k_core(chain, 2, 2)
        >>> len(core.events), len(core.rounds), dict(core.dropped)
        (0, 3, {'user below 2 events': 2, 'item below 2 events': 1})
    """
    import numpy as np

    users = _codes(event.user_id for event in events)
    items = _codes(event.item_id for event in events)
    kept = np.arange(len(events))
    core = Core([])
    while True:
        user_counts, item_counts = np.bincount(users[kept], minlength=1), np.bincount(items[kept], minlength=1)
        core.rounds.append(
            {"users": int((user_counts > 0).sum()), "items": int((item_counts > 0).sum()), "events": len(kept)}
        )
        user_fits = user_counts[users[kept]] >= min_user_events
        item_fits = item_counts[items[kept]] >= min_item_events
        if bool((user_fits & item_fits).all()):
            core.events = [events[index] for index in kept]
            return core
        core.dropped[f"user below {min_user_events} events"] += int((~user_fits).sum())
        core.dropped[f"item below {min_item_events} events"] += int((user_fits & ~item_fits).sum())
        kept = kept[user_fits & item_fits]


def _codes(names: Iterable[str]) -> np.ndarray:
    import numpy as np

    codes: dict[str, int] = {}
    return np.fromiter((codes.setdefault(name, len(codes)) for name in names), dtype=np.int64)
