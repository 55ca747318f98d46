"""A user's events in order, and the decisions that every later stage takes from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pulse_hf.artifacts import read_table, table_writer
from pulse_hf.data.arrays import column_of, lists, numbers, texts
from pulse_hf.data.event_log import EventLog
from pulse_hf.data.filtering import Core
from pulse_hf.data.splits import GlobalTime, People, cuts_of, until_the_test_target, without_targets
from pulse_hf.schema import Decision, Item, Sequence, Split, hash_order, stable_hash

FOLDER = "sequences"


@dataclass(frozen=True)
class OrderReport:
    """How far the order of events is known.

    Args:
        events: All events.
        tied_events: Events that share their time with another event of the same user.
        users_with_ties: Users with at least one such event.
        tied_tests: Users (of three events or more) whose test event shares its time with an earlier event.
        users_without_targets: Users who lost their targets to ``strict_time``.
    """

    events: int
    tied_events: int
    users_with_ties: int
    tied_tests: int
    users_without_targets: int = 0

    @property
    def tied_share(self) -> float:
        """Share of tied events, in [0, 1]."""
        return self.tied_events / self.events if self.events else 0.0


@dataclass
class SequenceCounts:
    """What :func:`write_sequences` wrote.

    Args:
        users: Sequences.
        items: Items of the core: the catalogue.
        events: All events.
        users_with_test: Users with a test target.
        events_with_review: Events with words of the person.
    """

    users: int = 0
    items: int = 0
    events: int = 0
    users_with_test: int = 0
    events_with_review: int = 0


def write_sequences(
    path: Path,
    log: EventLog,
    core: Core,
    *,
    timed: bool = True,
    ticks_per_second: int = 1,
    split: GlobalTime | People | None = None,
    strict_time: bool = False,
) -> tuple[SequenceCounts, OrderReport]:
    """Write one sequence for each user of the core, its events in order.

    Args:
        path: The Parquet file; users by a stable hash of their id, so that the place of a user in the file tells
            nothing. Its bytes do not depend on the order of the events in the log.
        log: Sorted events.
        core: Which of them count.
        timed: Whether timestamps are times; if they only order events, the sequences have none.
        ticks_per_second: Unit of the log's timestamps. Events are ordered before they are cut to seconds.
        split: The split by global time or by people; ``None`` for leave-one-out.
        strict_time: Leave-one-out without targets for users one of whose last two events ties with another.

    Returns:
        What was written, and how many events tie.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    counts = SequenceCounts(items=int(core.items.sum()))
    total = tied_events = users_with_ties = tied_tests = untested = 0
    user_ids, item_ids = texts(log.user_ids), texts(log.item_ids)
    with table_writer(path, "sequences") as write:
        for part in log.parts():
            users, items = numbers(part["user"]), numbers(part["item"])
            part = part.filter(column_of(core.users[users] & core.items[items]))
            if isinstance(split, GlobalTime):
                part = until_the_test_target(part, split)
            if not part.num_rows:
                continue
            users, times = numbers(part["user"]), numbers(part["timestamp"])
            starts = np.flatnonzero(np.diff(users, prepend=-1))
            offsets = np.append(starts, len(users))
            ties = np.append((np.diff(users) == 0) & (np.diff(times) == 0), False)  # with the next event
            tied = ties | np.append(False, ties[:-1])
            lengths = np.diff(offsets)
            ends = offsets[1:] - 1
            total += len(users)
            tied_events += int(tied.sum())
            users_with_ties += int(np.logical_or.reduceat(tied, starts).sum())
            cuts, tested = cuts_of(split, [log.user_ids[user] for user in users[starts]], times, starts, lengths)
            if strict_time:
                last = tied[ends] | tied[np.maximum(ends - 1, starts)]
                untested += int((last & tested).sum())
                cuts, tested = without_targets(cuts, lengths, last & tested), tested & ~last
            tied_tests += int((tied[ends] & tested).sum())
            counts.users += len(starts)
            counts.events += len(users)
            counts.users_with_test += int(tested.sum())
            counts.events_with_review += int(np.count_nonzero(numbers(pc.binary_length(part["review"]))))
            seconds = column_of(times // ticks_per_second if timed else times[:0])
            write(
                [
                    user_ids.take(column_of(users[starts])),
                    lists(offsets, item_ids.take(part["item"].combine_chunks())),
                    lists(offsets if timed else np.zeros_like(offsets), seconds),
                    lists(offsets, part["rating"].combine_chunks().cast(pa.float32())),
                    lists(offsets, part["review"].combine_chunks().cast(pa.string())),
                    cuts,
                ]
            )
    return counts, OrderReport(total, tied_events, users_with_ties, tied_tests, untested)


def catalogue_order(item_ids: Iterable[str]) -> list[str]:
    """The catalogue's order: by a stable hash, so that an ``item_index`` tells neither popularity nor age."""
    names = list(dict.fromkeys(item_ids))
    return [names[place] for place in hash_order("item", names)]


def load_sequences(run: Path) -> list[Sequence]:
    """All sequences of a run, in the order of the file.

    Args:
        run: The run folder, in which ``prepare`` has finished.

    Raises:
        ArtifactError: The table is missing or damaged.
    """
    columns = read_table(run / FOLDER / "sequences.parquet").to_pydict()
    names = ("user_id", "item_ids", "timestamps", "ratings", "reviews", "cut")
    return [
        Sequence(
            user,
            tuple(items),
            tuple(times),
            # Stored as float32: rounding gives back 4.3 where the file holds 4.30000019.
            tuple(r if r is None else round(r, 4) for r in stars),
            tuple(words),
            None if cut is None else tuple(cut),
        )
        for user, items, times, stars, words, cut in zip(*(columns[name] for name in names), strict=True)
    ]


def sequences_by_user(run: Path) -> dict[str, Sequence]:
    """All sequences of a run by user id, in the order of the file."""
    return {sequence.user_id: sequence for sequence in load_sequences(run)}


def load_items(run: Path) -> list[Item]:
    """The catalogue of a run; the item at place ``i`` has ``item_index`` ``i + 1``.

    Args:
        run: The run folder, in which ``prepare`` has finished.

    Raises:
        ArtifactError: The table is missing or damaged.
    """
    return [Item(**row) for row in read_table(run / FOLDER / "items.parquet").to_pylist()]


def items_by_id(run: Path) -> dict[str, Item]:
    """The catalogue of a run by item id, in its order."""
    return {item.item_id: item for item in load_items(run)}


def decisions(sequences: Iterable[Sequence], split: Split) -> list[Decision]:
    """All targets of one split that have a history.

    Args:
        sequences: The users.
        split: ``"train"`` gives every training event but the first, the others one event for each user who has it.

    Returns:
        Decisions in the order of the users, positions ascending.

    Example:
        >>> user = Sequence("u", ("a", "b", "c", "d"), (1, 2, 3, 4), (None,) * 4, ("",) * 4)
        >>> [(d.position, d.split) for s in ("train", "validation", "test") for d in decisions([user], s)]
        [(1, 'train'), (2, 'validation'), (3, 'test')]
    """
    return [
        Decision(sequence.user_id, position, split)
        for sequence in sequences
        for position in range(1, len(sequence))
        if sequence.split_of(position) == split
    ]


def training_decisions(sequences: Iterable[Sequence], per_user: int) -> list[Decision]:
    """The last training targets of each user: those whose histories are most like the ones at test time.

    Args:
        sequences: The users.
        per_user: At most so many decisions of each user, at least 1.

    Raises:
        ValueError: ``per_user`` is below 1.
    """
    if per_user < 1:
        raise ValueError(f"per_user is {per_user}, expected at least 1.")
    return [decision for sequence in sequences for decision in decisions([sequence], "train")[-per_user:]]


def sample_decisions(
    decisions: list[Decision], n: int | None, seed: int, *, purpose: str = "judging"
) -> list[Decision]:
    """A sample of whole users, the same in every process; a larger sample contains a smaller one.

    Args:
        decisions: What to sample from.
        n: Users are taken until there are at least ``n`` decisions; ``None`` takes all.
        seed: Seed of the sample.
        purpose: ``"judging"`` or ``"training"``; samples of unlike purposes have nothing to do with each other.
            Otherwise the language model would be tuned on just those users on whose validation decisions it is stopped
            and weighed, and have met few of those whom it is tested on.

    Returns:
        The decisions of the sampled users, in the order they came. With one decision per user exactly
        ``min(n, len(decisions))``, else up to one user's decisions more.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n is None:
        return list(decisions)
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1, or None for all.")
    per_user: dict[str, int] = {}
    for decision in decisions:
        per_user[decision.user_id] = per_user.get(decision.user_id, 0) + 1
    drawn = ("sample",) if purpose == "judging" else ("sample", purpose)
    taken: set[str] = set()
    total = 0
    for user_id in sorted(per_user, key=lambda user_id: (stable_hash(*drawn, seed, user_id), user_id)):
        if total >= n:
            break
        taken.add(user_id)
        total += per_user[user_id]
    return [decision for decision in decisions if decision.user_id in taken]


def decisions_of_users(
    decisions: list[Decision], max_users: int | None, seed: int, *, purpose: str = "judging"
) -> list[Decision]:
    """All decisions of at most ``max_users`` users, in the order they came; see :func:`sample_decisions`."""
    one_each = list({decision.user_id: decision for decision in decisions}.values())
    users = {decision.user_id for decision in sample_decisions(one_each, max_users, seed, purpose=purpose)}
    return [decision for decision in decisions if decision.user_id in users]


def some_decisions(
    decisions: list[Decision], per_user: int | None, max_users: int | None, seed: int
) -> list[Decision]:
    """The latest decisions of some users to train on, in the order they came.

    Args:
        decisions: What to choose from.
        per_user: At most so many of each user, the latest ones; ``None`` for all.
        max_users: Only this many users, by a stable hash; ``None`` for all.
        seed: Seed of the sample of users.

    Raises:
        ValueError: ``per_user`` is below 1.
    """
    if per_user is not None and per_user < 1:
        raise ValueError(f"training_decisions_per_user is {per_user}, expected at least 1, or null for all.")
    chosen = decisions_of_users(decisions, max_users, seed, purpose="training")
    places: dict[str, list[int]] = {}
    for decision in chosen:
        places.setdefault(decision.user_id, []).append(decision.position)
    latest = {user_id: set(sorted(found)[-per_user if per_user else None :]) for user_id, found in places.items()}
    return [decision for decision in chosen if decision.position in latest[decision.user_id]]
