"""Whose events train, validate and test: by leaving the last two out, by the calendar, or by people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pulse_hf.data.arrays import column_of, lists, numbers
from pulse_hf.data.event_log import EventLog
from pulse_hf.data.filtering import Core
from pulse_hf.schema import Split, stable_hash

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GlobalTime:
    """A split by the calendar: fits see nothing that happened later than what is predicted.

    A user's events before ``validation`` are training events, the first one from then on (but before ``test``) is the
    validation target, the first one from ``test`` on is the test target; what comes after that is left out.

    Args:
        validation: When the validation period begins, in the log's unit.
        test: When the test period begins.
    """

    validation: int
    test: int


@dataclass(frozen=True)
class People:
    """A split by people ("strong generalisation"): fits see nothing at all of whom they are tested on.

    Of a person kept for testing or validation the last event is the target and the earlier ones are history only; all
    events of the others train. Who is kept is told by a stable hash of the person's id.

    Args:
        validation_share: Share of the people kept for validation.
        test_share: Share of the people kept for testing.
    """

    validation_share: float
    test_share: float

    def part_of(self, user_id: str) -> Split:
        """Where a person belongs.

        >>> People(validation_share=0.2, test_share=0.3).part_of("ann")
        'train'
        """
        place = stable_hash("people", user_id) / 2**64
        if place < self.test_share:
            return "test"
        return "validation" if place < self.test_share + self.validation_share else "train"


def split_times(log: EventLog, core: Core, validation_share: float, test_share: float, day: int) -> GlobalTime:
    """The latest beginnings of days after which at least the given shares of all events lie.

    Args:
        log: Sorted events with times.
        core: Which of them count.
        validation_share: Share of the events in the validation period.
        test_share: Share of the events in the test period.
        day: Ticks of a day in the log's unit.

    Raises:
        ValueError: A period would be empty, or nothing would be left to train on.
    """
    import numpy as np

    per_day: Counter[int] = Counter()
    for part in log.parts(("user", "item", "timestamp")):
        kept = core.users[numbers(part["user"])] & core.items[numbers(part["item"])]
        days, counts = np.unique(numbers(part["timestamp"])[kept] // day, return_counts=True)
        per_day.update(dict(zip(days.tolist(), counts.tolist(), strict=True)))
    days = np.array(sorted(per_day))
    later = np.cumsum(np.array([per_day[one] for one in days.tolist()])[::-1])[::-1] / max(1, per_day.total())
    shares = (validation_share + test_share, test_share)
    begins = [int(np.searchsorted(-later, -share, side="right")) - 1 for share in shares]
    if not 0 < begins[0] < begins[1] < len(days):
        raise ValueError(
            f"{len(days)} days cannot be cut into training, a validation share of {validation_share:g} and a test "
            f"share of {test_share:g}; give larger shares, or split leave-one-out"
        )
    return GlobalTime(int(days[begins[0]]) * day, int(days[begins[1]]) * day)


def until_the_test_target(part: pa.Table, split: GlobalTime) -> pa.Table:
    """The part without what its users did after their test target."""
    import numpy as np

    users, late = numbers(part["user"]), numbers(part["timestamp"]) >= split.test
    first = late & ~np.concatenate([[False], late[:-1] & (np.diff(users) == 0)]) if len(users) else late
    return part.filter(column_of(~late | first))


def cuts_of(
    split: GlobalTime | People | None,
    user_ids: Series[str],
    times: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The ``cut`` of each user of a part of the log, and who has a test target with a history.

    Args:
        split: How; ``None`` for leave-one-out, which needs no cut.
        user_ids: The users.
        times: (events,) of all their events, user after user.
        starts: (users,) where each user's events begin.
        lengths: (users,) number of events.
    """
    import numpy as np
    import pyarrow as pa

    if split is None:
        return pa.nulls(len(starts), pa.list_(pa.int32())), lengths >= 3
    if isinstance(split, People):
        parts = np.array([split.part_of(user_id) for user_id in user_ids])
        trained = np.where(parts == "train", lengths, 0)
        validation, test = (np.where(parts == part, lengths - 1, -1) for part in ("validation", "test"))
    else:
        trained = np.add.reduceat((times < split.validation).astype(np.int32), starts)
        before_test = np.add.reduceat((times < split.test).astype(np.int32), starts)
        validation = np.where(before_test > trained, trained, -1)
        test = np.where(lengths > before_test, before_test, -1)
    flat = np.stack([trained, validation, test], axis=1).astype(np.int32).ravel()
    return lists(np.arange(0, len(flat) + 1, 3), column_of(flat)), test > 0


def without_targets(cuts: pa.Array, lengths: NDArray[np.int64], chosen: NDArray[np.bool_]) -> pa.Array:
    """The cuts with those of the chosen users replaced: every event trains."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = [[int(length), -1, -1] for length in lengths]
    return pc.if_else(column_of(chosen), pa.array(whole, cuts.type), cuts)
