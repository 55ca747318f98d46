"""Similar users by cosine of their SASRec vectors, and the items they lend (paper §4.2, Phase II)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.schema import stable_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf import schema

__all__ = ["NO_USER", "UserPool", "lend_items", "lendable", "neighbours"]

NO_USER = -1
# Cosines closer than this are one cosine: matrix products of equal vectors differ in the last bits
# with the vectors' places in memory, and the order of users must not matter.
_DECIMALS = 6


def neighbours(
    query_vectors: NDArray[np.floating],
    query_user_ids: Sequence[str],
    pool_vectors: NDArray[np.floating],
    pool_user_ids: Sequence[str],
    k: int,
    *,
    block: int = 256,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` users of the pool nearest to each query by cosine, never the user itself.

    Ties are broken by a stable hash of the pool's user ids, so neither ids nor the order of the
    pool decide. Similarities are computed in blocks: memory is ``block`` x pool, never queries x pool.

    Args:
        query_vectors: (q, dim).
        query_user_ids: Whose each query is; an id outside the pool is legal (a new user).
        pool_vectors: (p, dim).
        pool_user_ids: Whose each pool vector is, distinct.
        k: Neighbours wanted, at least 1.
        block: Queries compared at once; does not change the result.

    Returns:
        Places in the pool (q, k), nearest first, and cosines (q, k) in [-1, 1]. Where the pool holds fewer
        than ``k`` others, the rest is ``NO_USER`` (-1) with cosine -inf.

    Raises:
        ValueError: Vectors and ids do not match, a vector is not finite, or the pool repeats a user.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> places, cosines = neighbours(vectors, ["a", "b", "c"], vectors, ["a", "b", "c"], k=1)
        >>> places[:, 0].tolist()
        [1, 0, 1]
    """
    return UserPool(pool_vectors, pool_user_ids).nearest(query_vectors, query_user_ids, k, block=block)


class UserPool:
    """The users that neighbours are sought among, ordered and of unit length once for many questions.

    Args:
        vectors: (p, dim).
        user_ids: Whose each vector is, distinct.

    Raises:
        ValueError: They do not match, a vector is not finite, or a user stands twice.
    """

    def __init__(self, vectors: NDArray[np.floating], user_ids: Sequence[str]) -> None:
        _check(vectors, user_ids, "pool")
        distinct = len(set(user_ids))
        if distinct != len(user_ids):
            raise ValueError(f"the pool has {len(user_ids)} vectors of {distinct} users; expected one per user")
        self._order = np.array(
            sorted(range(len(user_ids)), key=lambda place: stable_hash(user_ids[place])), dtype=np.int64
        )
        self._vectors = _unit(vectors)[self._order]
        self._column_of = {user_ids[place]: column for column, place in enumerate(self._order.tolist())}

    def nearest(
        self, vectors: NDArray[np.floating], user_ids: Sequence[str], k: int, *, block: int = 256
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Places of the ``k`` nearest others of each query, and cosines; see :func:`neighbours`."""
        _check(vectors, user_ids, "query")
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1 neighbour")
        queries = _unit(vectors)
        places = np.full((len(queries), k), NO_USER, dtype=np.int64)
        cosines = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for start in range(0, len(queries), block):
            similarities = np.round(queries[start : start + block] @ self._vectors.T, _DECIMALS)
            for row, user_id in enumerate(user_ids[start : start + block]):
                if user_id in self._column_of:
                    similarities[row, self._column_of[user_id]] = -np.inf
            columns = _largest(similarities, min(k, len(self._vectors)))
            values = np.take_along_axis(similarities, columns, axis=1)
            found = slice(start, start + len(columns)), slice(0, columns.shape[1])
            places[found] = np.where(np.isfinite(values), self._order[columns], NO_USER)
            cosines[found] = values
        return places, cosines


def _check(vectors: NDArray[np.floating], user_ids: Sequence[str], name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != len(user_ids):
        raise ValueError(
            f"{name}: vectors of shape {vectors.shape} for {len(user_ids)} user ids; expected ({len(user_ids)}, dim)"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: the vector of user {user_ids[int(np.argmin(finite))]!r} is not finite")


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` largest values of each row, largest first, ties by the lower column."""
    chosen = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    smallest = np.take_along_axis(values, chosen, axis=1).min(axis=1)
    # argpartition picks any of the columns tied for the last place: those rows are chosen anew.
    for row in np.flatnonzero((values >= smallest[:, None]).sum(axis=1) > k):
        columns = np.flatnonzero(values[row] >= smallest[row])
        chosen[row] = np.sort(columns[np.argsort(-values[row, columns], kind="stable")][:k])
    by_value = np.argsort(-np.take_along_axis(values, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, by_value, axis=1)


def lendable(sequences: Sequence[schema.Sequence]) -> dict[str, schema.Sequence]:
    """What each user may lend to others: the training events, never a validation or test target."""
    return {sequence.user_id: sequence.training() for sequence in sequences}


def lend_items(
    user_ids: Sequence[str],
    similarities: Sequence[float],
    lenders: Mapping[str, schema.Sequence],
    *,
    history: Sequence[str],
    before: int | None,
    max_items: int,
) -> list[str]:
    """The items that similar users lend to a decision, by similarity-weighted vote.

    Args:
        user_ids: The neighbours.
        similarities: Their cosines; a negative one votes with 0.
        lenders: Training events of every user, from :func:`lendable`.
        history: Items the decision's user already has; never lent.
        before: The target's time: only earlier events are lent. ``None`` where the data has no times.
        max_items: How many items at most.

    Returns:
        Distinct item ids, most votes first; equal votes by the nearer lender, then his later event,
        then a stable hash.

    Example:
        >>> from pulse_hf.schema import Sequence as S
        >>> lenders = {"b": S("b", ("x", "y"), (), (), ()), "c": S("c", ("y", "z"), (), (), ())}
        >>> lend_items(["b", "c"], [0.9, 0.5], lenders, history=["x"], before=None, max_items=2)
        ['y', 'z']
    """
    known = set(history)
    votes: dict[str, float] = {}
    nearness: dict[str, tuple[int, int]] = {}
    for rank, (user_id, similarity) in enumerate(zip(user_ids, similarities, strict=True)):
        events = lenders[user_id]
        last_event: dict[str, int] = {}
        for place, item_id in enumerate(events.item_ids):
            late = before is not None and bool(events.timestamps) and events.timestamps[place] >= before
            if item_id not in known and not late:
                last_event[item_id] = place
        for item_id, place in last_event.items():
            votes[item_id] = votes.get(item_id, 0.0) + max(0.0, float(similarity))
            nearness.setdefault(item_id, (rank, -place))
    ranked = sorted(votes, key=lambda item_id: (-votes[item_id], nearness[item_id], stable_hash(item_id)))
    return ranked[:max_items]
