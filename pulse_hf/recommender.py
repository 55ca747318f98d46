"""``PulseRecommender``: what users load. History in, ranked items with a reason out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from pulse_hf.artifacts import ArtifactError
from pulse_hf.composition import Parts, parts_of_run
from pulse_hf.hub.transfer import is_repo_id, pull
from pulse_hf.reasoning.prompts import PromptBudget
from pulse_hf.reasoning.thoughts import ThoughtSettings
from pulse_hf.retrieval.names import Event, Names, Title
from pulse_hf.retrieval.retriever import Retriever
from pulse_hf.saving import load_parts, save_parts
from pulse_hf.schema import Decision, Item, Sequence

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

NUM_RETRIEVED = 100
KEPT_THOUGHTS = 512

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One ranked item.

    Args:
        item_id: The catalogue's id, or the title itself for a candidate outside the catalogue.
        title: Its title.
        score: The scorer's raw logit; comparable within one call.
        rationale: The reason the ranking stands on, the same for all items of a call.
        agreement: How well the reason agrees with the behaviour, in [-1, 1]; ``None`` without a reason.
        cold_start: Whether the history holds no item of the catalogue: it is empty, or all titles in it are unknown.
    """

    item_id: str
    title: str
    score: float
    rationale: str
    agreement: float | None
    cold_start: bool = False


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
    of each other: share one.)

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
        self._names = Names(parts.items, parts.item_vectors, parts.record["encoder"])
        sizes = parts.record["neighbours"]
        self._retriever = Retriever(
            parts.sequential, self._names, parts.pool, sizes["num_neighbours"], sizes["neighbour_items"]
        )
        self._trees: OrderedDict[Sequence, Tree] = OrderedDict()
        self._turn = RLock()
        thoughts = dict(parts.record["thoughts"])
        self._settings = ThoughtSettings(**{**thoughts, "budget": PromptBudget(**thoughts["budget"])})

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
            candidates: Item ids or titles to rank; by default the best of the catalogue by SASRec (100, or
                ``k`` if that is more), without the history's items.
            rationale: A reason to rank by instead of a generated one.

        Returns:
            At most ``k`` items, best first; equal scores keep the candidates' order.

        Raises:
            ValueError: ``k`` is below 1, ``candidates`` is empty, an item of it or of the history is, or one of the
                two is no list.
            ConnectionError: The encoder of titles outside the catalogue is not here and the Hub is out of reach, or a
                server that writes the reasons does not answer.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        past, items = self._names.read(history)
        if candidates is None:
            chosen = self._retriever.best(past, items, max(NUM_RETRIEVED, k))
        else:
            chosen = self._given(candidates, items)
        if not chosen:  # the history holds the whole catalogue
            return []
        thought = self._thought(past, items, rationale)
        scores = self._score(past, items, chosen, thought)
        ranked = sorted(zip(chosen, scores, strict=True), key=lambda pair: -pair[1])[:k]
        cold = not any(one in self.parts.items for one in past.item_ids)
        return [
            Recommendation(one, items[one].title, score, thought.reason or "", thought.agreement, cold)
            for one, score in ranked
        ]

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
            One raw logit per candidate, in the candidates' order; independent of that order and of each other.

        Raises:
            ValueError: There is no candidate, one is empty, or one of the lists is none.
            ConnectionError: See :meth:`recommend`.
        """
        past, items = self._names.read(history)
        chosen = self._given(candidates, items)
        return self._score(past, items, chosen, self._thought(past, items, rationale))

    @_one_at_a_time
    def explain(self, history: Series[str | Event]) -> Tree:
        """Grow the tree of thoughts of a history, or give the one that was grown before.

        Args:
            history: See :meth:`recommend`.

        Returns:
            The whole tree: every draft with its likelihood and agreement, and the chosen leaf, if one was usable.

        Raises:
            ValueError: The history is no list, or an item of it is empty.
            ConnectionError: See :meth:`recommend`.
        """
        past, items = self._names.read(history)
        return self._tree(past, items)

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
            ``parts.shared.vectors``. The product of the two is the agreement.

        Raises:
            ValueError: The history is no list, or an item of it is empty.
        """
        import numpy as np

        past, items = self._names.read(history)
        space = self.parts.thought_space
        behaviour = np.asarray(space.encode_histories([self.parts.shared.told(past, items)])[0].cpu(), np.float32)
        if not reasons:
            return behaviour, np.empty((0, len(behaviour)), np.float32)
        return behaviour, np.asarray(space.encode_rationales(list(reasons)).cpu(), np.float32)

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

    # -- steps -----------------------------------------------------------------------------------

    def _given(self, candidates: Series[str], items: MutableMapping[str, Item]) -> list[str]:
        """Item ids of given candidates; refused before a tree is grown, which may take seconds."""
        chosen = self._names.found(candidates, items)
        if not chosen:
            raise ValueError("there are no candidates to score; give at least one item id or title")
        return chosen

    def _tree(self, past: Sequence, items: Mapping[str, Item]) -> Tree:
        from pulse_hf.reasoning.prompts import reason_prompt
        from pulse_hf.reasoning.tree_of_thought import grow_trees

        if past in self._trees:
            self._trees.move_to_end(past)
            return self._trees[past]
        decision = Decision("", len(past), "test")
        prompt = reason_prompt(decision, past, items, self._retriever.lent(past, items), self._settings.budget)
        (tree,) = grow_trees(
            [prompt],
            self.parts.generator,
            lambda pairs: self._agreements(past, items, [text for _, text in pairs]),
            self._settings.tree,
            self._settings.sampling,
            self.parts.record["seed"],
        )
        self._trees[past] = tree
        if len(self._trees) > KEPT_THOUGHTS:
            self._trees.popitem(last=False)
        return tree

    def _agreements(self, past: Sequence, items: Mapping[str, Item], reasons: Series[str]) -> list[float]:
        told = self.parts.shared.told(past, items)
        agreements: list[float] = self.parts.thought_space.agreement(told, list(reasons)).tolist()
        return agreements

    def _thought(self, past: Sequence, items: Mapping[str, Item], rationale: str | None) -> Thought:
        from pulse_hf.reasoning.examples import Thought

        if rationale is None:
            node = self._tree(past, items).chosen
            return Thought(None, None) if node is None else Thought(node.text, node.agreement)
        text = " ".join(rationale.split())
        return Thought(text, self._agreements(past, items, [text])[0]) if text else Thought(None, None)

    def _score(self, past: Sequence, items: Mapping[str, Item], chosen: Series[str], thought: Thought) -> list[float]:
        from pulse_hf.models.scorer.processing_scorer import score_sets
        from pulse_hf.reasoning.examples import scorer_example

        parts = self.parts
        parts.shared.forget(beyond=KEPT_THOUGHTS)
        parts.processor.forget(beyond=KEPT_THOUGHTS + len(parts.items))
        example = scorer_example(past, items, chosen, thought, parts.shape, parts.processor.prompt_fits, parts.shared)
        return score_sets(parts.scorer, parts.processor, [example])[0]

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
            ValueError: ``repo_id`` is none, or it is public and should be private.
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
                more than 128 MiB) are loaded with the latter, from the default cache.
            cache_dir: Cache folder of the repo.
            local_files_only: Use what is cached; a repo, a language model or an encoder of titles that is not there is
                an error. (``HF_HUB_OFFLINE=1`` never asks for anything.)
            generator: Writes the reasons, instead of the language model it was made with.
            device: Of the language models that score and write, ``"cuda"`` or ``"cpu"``; by default a GPU if there is
                one.
            dtype: Of their weights; by default bfloat16 where the hardware computes in it (the scorer's on a CPU
                float32).

        Raises:
            ArtifactError: It is none, is damaged, or was made with other prompts or another base model.
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
