"""Which users and items have enough events to count: the k-core, in one round or in as many as it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pulse_hf.data.arrays import numbers
from pulse_hf.data.event_log import EventLog

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Core:
    """What :func:`k_core` kept.

    Args:
        users: Which users (by their place in ``EventLog.user_ids``) are in the core.
        items: Which items (by their place in ``EventLog.item_ids``) are in the core.
        events: Number of events of the core: those whose user and item are in it.
        rounds: Users, items and events before the first round and after each round that dropped some.
        dropped: Reason to number of events; an event whose user and item both fall counts for its user.
    """

    users: NDArray[np.bool_]
    items: NDArray[np.bool_]
    events: int
    rounds: list[dict[str, int]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def k_core(log: EventLog, min_user_events: int, min_item_events: int, max_rounds: int | None = None) -> Core:
    """Drop users and items with too few events, again and again until nothing is left to drop.

    One round is not enough: a dropped item can leave a user short. The fixed point does not depend on the
    order of users, items or events.

    Args:
        log: Sorted events.
        min_user_events: Events a user must have; 0 or 1 keeps every user.
        min_item_events: Events an item must have; 0 or 1 keeps every item.
        max_rounds: Stop after so many rounds of counting and dropping (1 is the single pass of A-LLMRec's
            preprocessing); ``None`` goes on to the fixed point.

    Returns:
        The core and how it came about; it may be empty.
    """
    import numpy as np

    users = np.ones(len(log.user_ids), dtype=bool)
    items = np.ones(len(log.item_ids), dtype=bool)
    rounds: list[dict[str, int]] = []
    dropped: Counter[str] = Counter()
    before = by_users = 0
    while True:
        per_user, per_item = _counts(log, users, items)
        events = int(per_user.sum())
        if rounds:
            dropped[f"user below {min_user_events} events"] += by_users
            dropped[f"item below {min_item_events} events"] += before - events - by_users
        rounds.append({"users": int((per_user > 0).sum()), "items": int((per_item > 0).sum()), "events": events})
        weak_users, weak_items = users & (per_user < min_user_events), items & (per_item < min_item_events)
        # Users and items that a round left without any event are gone already.
        falls = bool((weak_users & (per_user > 0)).any() or (weak_items & (per_item > 0)).any())
        if not falls or (max_rounds is not None and len(rounds) > max_rounds):
            break
        users, items = users & ~weak_users, items & ~weak_items
        before, by_users = events, int(per_user[weak_users].sum())
    users, items = users & (per_user > 0), items & (per_item > 0)
    return Core(users, items, events, rounds, Counter({reason: rows for reason, rows in dropped.items() if rows}))


def _counts(log: EventLog, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """Events of each user and each item, counting only events of which both are still in."""
    import numpy as np

    per_user, per_item = np.zeros(len(users), dtype=np.int64), np.zeros(len(items), dtype=np.int64)
    for part in log.parts(("user", "item")):
        user, item = numbers(part["user"]), numbers(part["item"])
        kept = users[user] & items[item]
        per_user += np.bincount(user[kept], minlength=len(users))
        per_item += np.bincount(item[kept], minlength=len(items))
    return per_user, per_item
