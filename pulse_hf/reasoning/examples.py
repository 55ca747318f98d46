"""Scorer examples: the one place where a decision becomes the texts that the scorer reads.

Training, evaluation and serving all come through here, so that they cannot differ. The prompt shows
history, r* and s* (paper §4.2); ``ablations`` of it are a :class:`PromptShape`, which is saved beside
the adapter and read back by whoever scores with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_hf.artifacts import read_table
from pulse_hf.data.item_text import cut_text
from pulse_hf.reasoning.prompts import PromptBudget, candidate_text, score_prompt
from pulse_hf.schema import CandidateSet, Item, Sequence

if TYPE_CHECKING:
    from pulse_hf.reasoning.shared_reasons import SharedReasons

# Steps in which an overlong reason loses words once a single event is left.
_REASON_WORDS = (60, 40, 20, 10)
# Characters of the reason and of a title tried after them: a script without spaces is not shortened by words.
_CHARS = (160, 120, 80, 60, 40, 20, 10, 5)


@dataclass(frozen=True, slots=True)
class Thought:
    """The chosen reason of one decision.

    Args:
        reason: r*, or ``None`` where there is none.
        agreement: s* in [-1, 1], or ``None`` where it was not measured.
    """

    reason: str | None = None
    agreement: float | None = None


NO_THOUGHT = Thought()


def load_thoughts(run: Path) -> dict[str, Thought]:
    """r* and s* of a run by decision id; an empty reason is no reason.

    Raises:
        ArtifactError: The stage ``thoughts`` has not run, or its table is damaged.
    """
    rows = read_table(run / "thoughts" / "thoughts.parquet").select(["decision_id", "reason", "agreement"]).to_pylist()
    return {row["decision_id"]: Thought(row["reason"] or None, row["agreement"]) for row in rows}


SCORERS = ("pulse", "pulse-text", "slm+sft")
"""The scorers a run can tune: with votes of shared reasons, by r* and s* alone, without any reason."""


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What of a thought the scorer is shown; it must be the same in training and after.

    Args:
        use_reason: Show r*; without it the prompt is that of plain supervised tuning (``slm+sft``).
        use_agreement: Show s* beside r* (paper §4.2).
        budget: How much of each field is shown.
        shared_temperature: Beside each candidate, what the rationales of those who chose it say for r* and for b_u
            (:mod:`pulse_hf.reasoning.shared_reasons`); ``None`` leaves it out.
        shared_smoothing: Its smoothing.
        title_agreement: Beside these votes, how near the candidate's title is to r* and to b_u in Thought Space.
    """

    use_reason: bool = True
    use_agreement: bool = True
    budget: PromptBudget = field(default_factory=PromptBudget)
    shared_temperature: float | None = None
    shared_smoothing: float = 0.3
    title_agreement: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the scalars that stand beside each candidate, in their order."""
        if self.shared_temperature is None:
            return ()
        return ("reason", "behaviour", *(("reason, title", "behaviour, title") if self.title_agreement else ()))

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> PromptShape:
        """Rebuild a shape from ``dataclasses.asdict`` of one.

        >>> from dataclasses import asdict
        >>> PromptShape.from_dict(asdict(PromptShape(use_agreement=False))).use_agreement
        False
        """
        budget = values["budget"]
        if not isinstance(budget, Mapping):
            raise ValueError(f"prompt shape: budget is {budget!r}, expected an object with the fields of PromptBudget")
        return cls(**{**values, "budget": PromptBudget(**budget)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ScorerExample:
    """One decision as the scorer reads it.

    Args:
        prompt: History, r* and s* as text.
        candidates: One text per candidate, in the set's stored order.
        target_index: Place of the chosen candidate, ``None`` while serving.
        decision_id: Which decision, ``""`` while serving.
        features: Scalars beside each candidate; empty for the text-only system.
        num_events: History events the prompt shows after cutting.
        shortened: Whether the reason or titles lost their ends because the prompt would not fit.
    """

    prompt: str
    candidates: tuple[str, ...]
    target_index: int | None = None
    decision_id: str = ""
    features: tuple[tuple[float, ...], ...] = ()
    num_events: int = 0
    shortened: bool = False


def scorer_example(
    history: Sequence,
    items: Mapping[str, Item],
    candidate_ids: Series[str],
    thought: Thought,
    shape: PromptShape,
    fits: Callable[[str], bool],
    shared: SharedReasons | None = None,
) -> ScorerExample:
    """The example of one history and its candidates.

    While the prompt does not fit, the oldest event goes first, then words at the end of the reason, then
    characters at the end of reason and title; never a candidate and never the instruction.

    Args:
        history: Events the decision may see, oldest first.
        items: The catalogue.
        candidate_ids: Items to score.
        thought: r* and s* of the decision, :data:`NO_THOUGHT` for none.
        shape: What of it is shown.
        fits: Tells whether a prompt is within the scorer's token budget.
        shared: The rationales that vote, where the shape asks for them.

    Raises:
        ValueError: Not even five characters of one title and of the reason fit, or votes are asked for and missing.
    """
    prompt, num_events, shortened = _fitted_prompt(history, items, thought, shape, fits)
    features = _features(history, items, candidate_ids, thought, shape, shared)
    texts = tuple(candidate_text(items[item_id]) for item_id in candidate_ids)
    return ScorerExample(prompt, texts, features=features, num_events=num_events, shortened=shortened)


def _features(
    history: Sequence,
    items: Mapping[str, Item],
    candidate_ids: Series[str],
    thought: Thought,
    shape: PromptShape,
    shared: SharedReasons | None,
) -> tuple[tuple[float, ...], ...]:
    """The scalars beside each candidate."""
    if shape.shared_temperature is None:
        return ()
    if shared is None:
        raise ValueError("this scorer weighs shared reasons beside the text; give the rationales that vote")
    reason = thought.reason if shape.use_reason else None
    return tuple(
        shared.votes(
            reason,
            history,
            items,
            candidate_ids,
            temperature=shape.shared_temperature,
            smoothing=shape.shared_smoothing,
            titles=shape.title_agreement,
        )
    )


def shorter(num_events: int, num_words: int) -> list[tuple[int, int]]:
    """Numbers of events and of words of reason to try, in this order: the oldest event goes first.

    >>> shorter(2, 12)
    [(2, 12), (1, 12), (1, 10)]
    """
    attempts = [(events, num_words) for events in range(num_events, 0, -1)] or [(0, num_words)]
    return attempts + [(min(num_events, 1), count) for count in _REASON_WORDS if count < num_words]


def _fitted_prompt(
    history: Sequence, items: Mapping[str, Item], thought: Thought, shape: PromptShape, fits: Callable[[str], bool]
) -> tuple[str, int, bool]:
    """The prompt, how many events it shows, and whether reason or titles lost their ends."""
    agreement = thought.agreement if shape.use_agreement else None
    words = thought.reason.split() if thought.reason and shape.use_reason else []
    for events, reason, title_chars in attempts(min(shape.budget.score_events, len(history)), words):
        budget = replace(shape.budget, score_events=events)
        prompt = score_prompt(history, items, reason or None, agreement, budget, title_chars)
        if fits(prompt):
            return prompt, events, title_chars is not None or reason != " ".join(words)
    raise ValueError(
        f"user {history.user_id}: the scorer's prompt exceeds its token budget even with one event; "
        "raise max_length or lower the budget's title_words"
    )


def attempts(num_events: int, words: list[str]) -> Iterator[tuple[int, str, int | None]]:
    """Number of events, reason and characters of a title to try, in this order."""
    for events, count in shorter(num_events, len(words)):
        yield events, " ".join(words[:count]), None
    whole = " ".join(words)
    for chars in _CHARS:
        yield min(num_events, 1), cut_text(whole, chars).rstrip(), chars


def example_of_set(
    candidate_set: CandidateSet,
    sequence: Sequence,
    items: Mapping[str, Item],
    thought: Thought,
    shape: PromptShape,
    fits: Callable[[str], bool],
    shared: SharedReasons | None = None,
) -> ScorerExample:
    """The example of a frozen candidate set; the history is every event before the decision's.

    Raises:
        ValueError: The set belongs to another user than the sequence.
    """
    decision = candidate_set.decision
    if decision.user_id != sequence.user_id:
        raise ValueError(
            f"candidate set {candidate_set.decision_id} was paired with the sequence of user {sequence.user_id}"
        )
    history = sequence.before(decision.position)
    example = scorer_example(history, items, candidate_set.item_ids, thought, shape, fits, shared)
    return replace(example, target_index=candidate_set.target_index, decision_id=candidate_set.decision_id)


def examples_of_sets(
    candidate_sets: Series[CandidateSet],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    thoughts: Mapping[str, Thought],
    shape: PromptShape,
    fits: Callable[[str], bool],
    shared: SharedReasons | None = None,
) -> list[ScorerExample]:
    """The examples of many frozen sets, in their order.

    Args:
        candidate_sets: What is to be scored.
        sequences: By user id.
        items: By item id.
        thoughts: By decision id; a decision without one is scored without reason, never left out.
        shape: What of the thoughts is shown.
        fits: Tells whether a prompt is within the scorer's token budget.
        shared: The rationales that vote, where the shape asks for them.
    """
    _read_together(candidate_sets, sequences, items, thoughts, shape, shared)
    return [
        example_of_set(one, sequences[one.decision.user_id], items, _thought(one, thoughts), shape, fits, shared)
        for one in candidate_sets
    ]


def features_of_sets(
    candidate_sets: Series[CandidateSet],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    thoughts: Mapping[str, Thought],
    shape: PromptShape,
    shared: SharedReasons | None,
) -> list[tuple[tuple[float, ...], ...]]:
    """The scalars beside the candidates of many frozen sets, as in :func:`examples_of_sets`, without any text."""
    _read_together(candidate_sets, sequences, items, thoughts, shape, shared)
    return [
        _features(_history(one, sequences), items, one.item_ids, _thought(one, thoughts), shape, shared)
        for one in candidate_sets
    ]


def _read_together(
    candidate_sets: Series[CandidateSet],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    thoughts: Mapping[str, Thought],
    shape: PromptShape,
    shared: SharedReasons | None,
) -> None:
    """Encode what the votes of many sets ask for at once, which is faster than set by set."""
    if shared is None or shape.shared_temperature is None:
        return
    # In the order of the sets: which texts share a batch must not hang on a hash.
    wanted = dict.fromkeys(item_id for one in candidate_sets for item_id in one.item_ids if shape.title_agreement)
    shared.read(
        (_thought(one, thoughts).reason or "" for one in candidate_sets),
        (shared.told(_history(one, sequences), items) for one in candidate_sets),
        (items[item_id].title for item_id in wanted),
    )


def _history(candidate_set: CandidateSet, sequences: Mapping[str, Sequence]) -> Sequence:
    """What the decision may see: every event before it."""
    decision = candidate_set.decision
    return sequences[decision.user_id].before(decision.position)


def _thought(candidate_set: CandidateSet, thoughts: Mapping[str, Thought]) -> Thought:
    return thoughts.get(candidate_set.decision_id, NO_THOUGHT)
