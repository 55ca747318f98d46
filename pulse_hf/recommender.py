"""``PulseRecommender``: what users load. History in, ranked items with a reason out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Series
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import wraps
from numbers import Integral
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pulse_hf.answering import NUM_RETRIEVED, Answering, Asked
from pulse_hf.artifacts import ArtifactError
from pulse_hf.composition import Parts, parts_of_run
from pulse_hf.hub.transfer import is_repo_id, pull
from pulse_hf.retrieval.names import Event, Title, typed_text
from pulse_hf.saving import load_parts, save_parts
from pulse_hf.schema import Sequence

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from pulse_hf.hub.transfer import Pushed
    from pulse_hf.reasoning.examples import Thought
    from pulse_hf.reasoning.generator import Generator
    from pulse_hf.reasoning.tree_of_thought import Tree

__all__ = ["NUM_RETRIEVED", "Event", "PulseRecommender", "Recommendation", "Title"]

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One ranked item.

    Args:
        item_id: The catalogue's id, or the (cleaned) title itself for a candidate outside the catalogue.
        title: Its title.
        score: The scorer's raw logit; comparable within one call.
        rationale: The reason the ranking stands on, the same for all items of a call.
        agreement: How well the reason agrees with the behaviour, in [-1, 1]; ``None`` without a reason or a history.
        cold_start: Whether the history holds no item of the catalogue: it is empty, or all titles in it are unknown.
    """

    item_id: str
    title: str
    score: float
    rationale: str
    agreement: float | None
    cold_start: bool = False


def _require_count(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k is {k!r}; expected a whole number, at least 1")


def _one_at_a_time(
    method: Callable[Concatenate[PulseRecommender, _Args], _Answer],
) -> Callable[Concatenate[PulseRecommender, _Args], _Answer]:
    """What is read for one answer is forgotten before another: a second thread waits."""

    @wraps(method)
    def waiting(self: PulseRecommender, *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        with self._turn:
            return method(self, *args, **kwargs)

    return waiting


class PulseRecommender:
    """Recommend with reasons (paper §4.2): similar users, tree of thought, candidate scorer.

    Safe to be asked by several threads; it answers one at a time. (Two recommenders of the same ``parts`` know nothing
    of each other: share one, or give each a ``copy.deepcopy``, made while nobody asks.)

    Args:
        parts: What it is composed of.

    Example:
        It needs models, so this one is not run as a doctest; ``make demo`` (about five minutes) makes the run::

            recommender = PulseRecommender.from_run("runs/demo")
            for item in recommender.recommend(["Bamboo Kettle", "Cork Tray"], k=3):  # any titles will do
                print(item.title, item.score, item.rationale)
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.users: dict[str, Sequence] = {}
        self.run: Path | None = None
        self._steps, self._turn = Answering(parts), RLock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: no lock, and no trees, which it grows anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_turn", "_steps")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._steps, self._turn = Answering(self.parts), RLock()

    # -- using it --------------------------------------------------------------------------------

    @_one_at_a_time
    def recommend(
        self,
        history: Series[str | Event],
        k: int = 10,
        candidates: Series[str] | None = None,
        rationale: str | None = None,
    ) -> list[Recommendation]:
        """Rank items for a history.

        Args:
            history: Oldest first: item ids, titles (known or not), or :class:`Event` with words. A text that is the id
                of one item and the title of another means the former; :class:`Title` means the latter.
            k: How many items at most; more than the catalogue holds gives all that the history does not hold.
            candidates: Item ids or titles to rank, each item once; by default the best of the catalogue by SASRec
                (100, or ``k`` if that is more), without the history's items.
            rationale: A reason to rank by instead of a generated one; ``""`` for none.

        Returns:
            At most ``k`` items, best first; equal scores keep the candidates' order.

        Raises:
            ValueError: ``k`` is not a whole number of at least 1; ``history`` or ``candidates`` is not a list;
                ``candidates`` is empty; an item is an empty string; a rating is not a number; a review or the
                rationale is not a string.
            ConnectionError: The encoder for titles outside the catalogue is not cached and the Hub cannot be reached,
                or the server that writes the reasons does not answer.
        """
        return self._ranked([history], k, candidates, rationale)[0]

    @_one_at_a_time
    def recommend_many(
        self, histories: Series[Series[str | Event]], k: int = 10, candidates: Series[str] | None = None
    ) -> list[list[Recommendation]]:
        """Rank items for many histories at once: as :meth:`recommend` one by one, but their reasons grow together.

        Args:
            histories: See :meth:`recommend`; all their trees and scores are held in memory.
            k: See :meth:`recommend`.
            candidates: See :meth:`recommend`; the same for every history.

        Returns:
            What :meth:`recommend` gives for each history, in their order and up to rounding: where the language model
            computes in bfloat16, a reason may now and then be drafted with another word.

        Raises:
            ValueError: See :meth:`recommend`.
            ConnectionError: See :meth:`recommend`.

        Example:
            As in the class, it needs models::

                for ranked in recommender.recommend_many([["Bamboo Kettle"], ["Cork Tray"]], k=3):
                    print([item.title for item in ranked])
        """
        return self._ranked(histories, k, candidates, None)

    @_one_at_a_time
    def score(
        self, history: Series[str | Event], candidates: Series[str], rationale: str | None = None
    ) -> list[float]:
        """Score given items for a history.

        Args:
            history: See :meth:`recommend`.
            candidates: Item ids or titles, at least one.
            rationale: A reason to score by instead of a generated one; ``""`` for none.

        Returns:
            One raw logit per candidate, in the candidates' order; independent of that order and of each other, up to
            rounding.

        Raises:
            ValueError: There is no candidate, or as in :meth:`recommend`.
            ConnectionError: See :meth:`recommend`.
        """
        past, items = self._steps.names.read(history)
        asked = [Asked(past, items, self._steps.given(candidates, items))]
        return self._steps.scores(asked, self._steps.thoughts(asked, rationale))[0]

    @_one_at_a_time
    def explain(self, history: Series[str | Event]) -> Tree:
        """Grow the tree of thoughts of a history, or give the one that was grown before.

        Args:
            history: See :meth:`recommend`.

        Returns:
            The whole tree, a copy of one's own: every draft with its likelihood and agreement (``None`` of an empty
            history), and the chosen leaf, if one was usable.

        Raises:
            ValueError: The history is not a list, or as in :meth:`recommend`.
            ConnectionError: See :meth:`recommend`.
        """
        return deepcopy(self._steps.trees_of([Asked(*self._steps.names.read(history))])[0])

    @_one_at_a_time
    def embed(
        self, history: Series[str | Event], reasons: Series[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where a history and reasons lie in Thought Space.

        Args:
            history: See :meth:`recommend`.
            reasons: Any texts; there may be none.

        Returns:
            Unit vectors: ``(dim,)`` of the behaviour and ``(len(reasons), dim)``, comparable with
            ``parts.shared.vectors``. The product of the two is the agreement; of an empty history it means nothing.

        Raises:
            ValueError: The history is not a list, or as in :meth:`recommend`, or ``reasons`` is not a list of strings.
        """
        import numpy as np

        listed = isinstance(reasons, Iterable) and not isinstance(reasons, str)
        if not listed or not all(isinstance(one, str) for one in reasons):
            raise ValueError(f"found {reasons!r}, expected a list of texts")
        texts = [typed_text(one, "a reason") for one in reasons]
        past, items = self._steps.names.read(history)
        space = self.parts.thought_space
        behaviour = np.asarray(space.encode_histories([self.parts.shared.told(past, items)])[0].cpu(), np.float32)
        if not texts:
            return behaviour, np.empty((0, len(behaviour)), np.float32)
        return behaviour, np.asarray(space.encode_rationales(texts).cpu(), np.float32)

    def history_of(self, user_id: str) -> list[Event]:
        """The events of a user of the run it was made from, as a history.

        Raises:
            ValueError: The user is not known; a recommender loaded from a folder knows none.
        """
        if user_id not in self.users:
            raise ValueError(
                f"user {user_id!r} is not known here ({len(self.users)} users are); give a history instead"
            )
        past = self.users[user_id]
        return [Event(*event) for event in zip(past.item_ids, past.ratings, past.reviews, strict=True)]

    @property
    def catalogue(self) -> pa.Table:
        """The items as a table: ``item_id``, ``title``, ``item_text``."""
        import pyarrow as pa

        return pa.Table.from_pylist([asdict(item) for item in self.parts.items.values()])

    def _ranked(
        self,
        histories: Series[Series[str | Event]],
        k: int,
        candidates: Series[str] | None,
        rationale: str | None,
    ) -> list[list[Recommendation]]:
        _require_count(k)
        if isinstance(histories, (str, Mapping)) or not isinstance(histories, Iterable):
            raise ValueError(f"found {histories!r}, expected a list of histories")
        asked = [self._steps.asked(history, k, candidates) for history in histories]
        served = [one for one in asked if one.candidates]  # the others' histories hold the whole catalogue
        thoughts = self._steps.thoughts(served, rationale)
        scores = self._steps.scores(served, thoughts)
        ranked = iter([self._ranking(*row)[:k] for row in zip(served, thoughts, scores, strict=True)])
        return [next(ranked) if one.candidates else [] for one in asked]

    def _ranking(self, one: Asked, thought: Thought, scores: list[float]) -> list[Recommendation]:
        cold = not any(item_id in self.parts.items for item_id in one.past.item_ids)
        return [
            Recommendation(item_id, one.items[item_id].title, score, thought.reason or "", thought.agreement, cold)
            for item_id, score in sorted(zip(one.candidates, scores, strict=True), key=lambda pair: -pair[1])
        ]

    # -- keeping it ------------------------------------------------------------------------------

    @_one_at_a_time
    def save_pretrained(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write everything into one folder that :meth:`from_pretrained` restores; no user of the run is in it.

        Args:
            folder: Where to; what an earlier save left there is replaced.
            merge: Keep the language model with the adapter added in, instead of the adapter.

        Raises:
            ArtifactError: The folder holds something else.
        """
        save_parts(self.parts, Path(folder), merge=merge)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        merge: bool = False,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Push recommender",
        license_id: str | None = None,
        dataset: str | None = None,
        dry_run: bool = False,
    ) -> Pushed:
        """Publish it as one model repo, in one commit.

        Args:
            repo_id: ``owner/name``; made if absent.
            merge: See :meth:`save_pretrained`.
            private: Whether a new repo is private.
            token: Access token; the one logged in with by default.
            revision: Branch.
            commit_message: The commit's message.
            license_id: Licence that the card states, by the Hub's name.
            dataset: Repo of the data, named in the card. (A card is written where it was made from a run with a
                report; otherwise the repo's own stays as it is.)
            dry_run: Only say what would be sent.

        Returns:
            The commit (``None`` if nothing had changed) and what was sent.

        Raises:
            ValueError: ``repo_id`` is not of the form ``owner/name``, or the repo is public and should be private.
            ArtifactError: A part lies on this machine only, or somebody else changed the repo meanwhile.
            NoAccessError: The token may not write there; it is asked before anything is saved.
            ConnectionError: The Hub could not be reached.
        """
        from pulse_hf.publish import Publication, push_recommender

        reported = self.run if self.run is not None and (self.run / "report.json").is_file() else None
        how = Publication(
            repo_id,
            private=private,
            token=token,
            revision=revision,
            license=license_id,
            dataset=dataset,
            merge=merge,
            dry_run=dry_run,
        )
        return push_recommender(self.parts, reported, how, message=commit_message, turn=self._turn)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        generator: Generator | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PulseRecommender:
        """Restore a recommender from a folder or from a repo of the Hub.

        Only weights, JSON and Parquet are read, each compared with its checksum; code in a repo is never fetched.

        Args:
            source: A folder written by :meth:`save_pretrained`, or ``owner/name``.
            revision: Branch, tag or commit of a repo.
            token: Access token of the repo; the one logged in with by default. Models that it only names (a base of
                the Hub, or of more than 128 MiB) are loaded with the latter, from the default cache.
            cache_dir: Cache folder of the repo.
            local_files_only: Use what is cached; a repo, a language model or an encoder of titles that is not there is
                an error. (``HF_HUB_OFFLINE=1`` never asks for anything.)
            generator: Writes the reasons, instead of the language model it was made with.
            device: Of the language models that score and write, ``"cuda"`` or ``"cpu"``; by default a GPU if there is
                one.
            dtype: Of their weights; by default bfloat16 where the hardware computes in it (the scorer's on a CPU
                float32).

        Raises:
            ArtifactError: The folder or repo is not a saved recommender, is damaged, or was made with other prompts or
                another base model.
            ConnectionError: The Hub could not be reached or refused; with ``local_files_only``, a model is not here.
        """
        folder = Path(source)
        if not folder.is_dir():
            if not is_repo_id(str(source)):
                raise ArtifactError(f"{source} is neither a folder nor owner/name of the Hub")
            folder = pull(
                str(source),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        return cls(load_parts(folder, generator, device=device, dtype=dtype, local_files_only=local_files_only))

    @classmethod
    def from_run(
        cls, run: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
    ) -> PulseRecommender:
        """Compose a recommender from a finished run; it also knows the run's users (:meth:`history_of`).

        Args:
            run: The run's folder.
            device: See :meth:`from_pretrained`.
            dtype: See :meth:`from_pretrained`.

        Raises:
            ArtifactError: A stage is missing.
        """
        parts, users = parts_of_run(Path(run), device=device, dtype=dtype)
        made = cls(parts)
        made.users, made.run = users, Path(run)
        return made
