"""The model's part of an answer: one function that runs on a GPU where there is one, one question at a time."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from inputs import RefusedError
from numpy.typing import NDArray

from pulse_hf.reasoning.tree_of_thought import Tree
from pulse_hf.recommender import NUM_RETRIEVED, Event, PulseRecommender, Recommendation

try:  # On ZeroGPU the package of this name lends a GPU for the time of a call.
    from spaces import GPU

    gpu: Callable[[Callable[..., Any]], Callable[..., Any]] = GPU(duration=60)
except ImportError:

    def gpu(work: Callable[..., Any]) -> Callable[..., Any]:
        """Without ZeroGPU the function stays as it is."""
        return work


DEADLINE_S = 30.0

# ZeroGPU runs a call in a forked process: the model is found there by number, never sent.
_opened: dict[int, PulseRecommender] = {}


@dataclass(frozen=True)
class Thinking:
    """Everything the model says about one history; plain data that can leave a process.

    Args:
        ranking: All retrieved candidates, best first, under the reason asked for.
        tree: The drafted reasons.
        behaviour: ``(dim,)`` unit vector of the history in Thought Space.
        reasons: Vectors of the tree's usable nodes by number.
        given: Vector of the reason that was given, if one was.
    """

    ranking: list[Recommendation]
    tree: Tree
    behaviour: NDArray[np.float32]
    reasons: dict[int, NDArray[np.float32]]
    given: NDArray[np.float32] | None


@gpu
def think(number: int, history: list[Event], reason: str | None, known: Tree | None) -> Thinking:
    """Draft reasons, rank, and place both in Thought Space.

    Args:
        number: Of the recommender, from :class:`Mind`.
        history: Oldest first.
        reason: Rank by this one instead of the drafted one; ``""`` for none.
        known: The tree of this very history, if it was grown before.
    """
    recommender = _opened[number]
    tree = recommender.explain(history) if known is None else known
    drafted = "" if tree.chosen is None else tree.chosen.text
    ranking = recommender.recommend(history, k=NUM_RETRIEVED, rationale=drafted if reason is None else reason)
    usable = [node for node in tree.nodes if node.status == "ok"]
    behaviour, vectors = recommender.embed(history, [*(node.text for node in usable), *([reason] if reason else [])])
    return Thinking(
        ranking,
        tree,
        behaviour,
        {node.number: vector for node, vector in zip(usable, vectors, strict=False)},
        vectors[-1] if reason else None,
    )


class Mind:
    """One recommender and its line of questions: one is thought about at a time, each within a deadline.

    Args:
        recommender: Loaded.
        deadline_s: Seconds from question to answer, waiting included; ``None`` for as long as it takes.
    """

    def __init__(self, recommender: PulseRecommender, deadline_s: float | None = DEADLINE_S) -> None:
        self.recommender = recommender
        self.deadline_s = deadline_s
        self._number = max(_opened, default=0) + 1
        _opened[self._number] = recommender
        self._line = ThreadPoolExecutor(max_workers=1, thread_name_prefix="think")

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Without a deadline: the first pass of a model is its slowest, and nobody waits for it."""
        before, self.deadline_s = self.deadline_s, None
        try:
            yield
        finally:
            self.deadline_s = before

    def close(self) -> None:
        """Let the recommender go."""
        _opened.pop(self._number, None)
        self._line.shutdown(wait=False, cancel_futures=True)

    def think(self, history: list[Event], reason: str | None = None, known: Tree | None = None) -> Thinking:
        """Ask; see :func:`think`.

        Raises:
            RefusedError: There was no answer in time.
        """
        context = contextvars.copy_context()  # ZeroGPU reads whose request it is from the context
        asked: Future[Thinking] = self._line.submit(context.run, think, self._number, history, reason, known)
        try:
            return asked.result(self.deadline_s)
        except Late as late:
            asked.cancel()
            raise RefusedError(
                f"No answer came within {self.deadline_s:.0f} seconds; please try again, or with a shorter history."
            ) from late
