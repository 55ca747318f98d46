"""The prompt of ``a-llmrec`` (Kim et al., KDD 2024, §4.2): texts, and places for soft tokens.

Training, evaluation and the leak audit all come through here. The prompt tells the user's soft token, the last titles,
each with its item's soft token, and, for ``a-llmrec+reason``, r*. Each candidate is a branch of its own behind it (its
soft token, then its title), where the original lists all candidates in the prompt and generates one title: so a
ranking comes out, and neither the order nor the company of the candidates matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass

from pulse_hf.reasoning.examples import NO_THOUGHT, PromptShape, Thought, attempts
from pulse_hf.reasoning.prompts import CANDIDATE_WORDS, inert, shown_title
from pulse_hf.schema import CandidateSet, Item, Sequence

USER = 0

__all__ = ["USER", "SoftExample", "soft_examples"]


@dataclass(frozen=True, slots=True)
class SoftExample:
    """One decision as the frozen language model reads it.

    Args:
        pieces: The prompt: texts, 0 for the user's soft token, an item index for an item's.
        branches: Item index and title of each candidate, in the set's stored order.
        history: Item indices behind the user's soft token, oldest first.
        target_index: Place of the chosen candidate.
    """

    pieces: tuple[str | int, ...]
    branches: tuple[tuple[int, str], ...]
    history: tuple[int, ...]
    target_index: int | None = None

    def told(self, *, candidates: bool = True) -> str:
        """All that is read, as one text, soft tokens by what they stand for: for hashes and audits.

        Args:
            candidates: With the candidates; without, where a target may stand among them.
        """
        user = "<user:" + ",".join(map(str, self.history)) + ">"
        prompt = "".join(
            piece if isinstance(piece, str) else f"<item:{piece}>" if piece else user for piece in self.pieces
        )
        branches = [f"<item:{index}> {title}" for index, title in self.branches] if candidates else []
        return "\x1f".join([prompt, *branches])


def soft_examples(
    candidate_sets: Series[CandidateSet],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    thoughts: Mapping[str, Thought],
    shape: PromptShape,
    fits: Callable[[Series[str | int]], bool],
) -> list[SoftExample]:
    """The examples of frozen sets, in their order; a history is every event before its decision.

    Args:
        candidate_sets: What is to be scored.
        sequences: By user id.
        items: The catalogue in its order, by item id.
        thoughts: By decision id; a decision without one is scored without reason.
        shape: Whether r* is shown, and how many words of what.
        fits: Tells whether a prompt is within the token budget.

    Raises:
        ValueError: Not even one event fits, with five letters of its title.
    """
    index = {item_id: number for number, item_id in enumerate(items, start=1)}
    examples = []
    for one in candidate_sets:
        decision = one.decision
        history = sequences[decision.user_id].before(decision.position)
        thought = thoughts.get(one.decision_id, NO_THOUGHT) if shape.use_reason else NO_THOUGHT
        examples.append(
            SoftExample(
                _pieces(history, items, index, thought, shape, fits),
                tuple((index[item], inert(items[item].title, CANDIDATE_WORDS)) for item in one.item_ids),
                tuple(index[item] for item in history.item_ids),
                one.target_index,
            )
        )
    return examples


def _pieces(
    history: Sequence,
    items: Mapping[str, Item],
    index: Mapping[str, int],
    thought: Thought,
    shape: PromptShape,
    fits: Callable[[Series[str | int]], bool],
) -> tuple[str | int, ...]:
    """The longest prompt that fits: the oldest event goes first, then words at the end of the reason, then letters."""
    words = thought.reason.split() if thought.reason else []
    for events, reason, title_chars in attempts(min(shape.budget.score_events, len(history)), words):
        pieces: list[str | int] = ["This user is", USER, ".\nWhat this person chose, oldest first:\n"]
        for item in history.item_ids[len(history) - events :]:
            pieces += [f"- {shown_title(items[item], shape.budget, title_chars)}", index[item], "\n"]
        if reason:
            pieces.append(f"Reason: {inert(reason, 100)}\n")
        pieces.append("Item:")
        if fits(pieces):
            return tuple(pieces)
    raise ValueError(
        f"user {history.user_id}: the prompt exceeds its token budget even with one event; raise the recommender's "
        "max_length"
    )
