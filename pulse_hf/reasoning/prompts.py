"""Every prompt of the system, as pure functions over versioned template files.

The templates lie in ``templates/`` beside this file and are package data; their sha256 is recorded in
every generated row and decides whether an artefact is current. Data is put in by a single pass that
never interprets it: a title holding ``{history}``, ``%s`` or a chat marker stays the text it is.
Fields are cut by words, by characters and by event count *before* templating, oldest events first, so
the instruction, the target and the candidates are never lost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from pulse_hf.data.item_text import cut_text
from pulse_hf.ranges import at_least
from pulse_hf.schema import Decision, Item, Sequence

Message = dict[str, str]

TEMPLATES = ("rationale", "reason", "refine", "score", "candidate")
NO_REASON = "none"
CANDIDATE_WORDS = 16
_WORD_CHARS = 16  # a "word" of a script without spaces, or of a long address, counts for as many as it fills

_FIELD = re.compile(r"\{(\w+)\}")
# Chat markers of the common families, and our own answer marker, must not be forgeable from data.
_MARKER = re.compile(r"<\|?|\|?>|\[/?INST\]|\b(Reason|Item|Fits):", re.IGNORECASE)


@dataclass(frozen=True)
class PromptBudget:
    """How much of each field a prompt may hold; cut before templating.

    Args:
        max_events: History events shown, the most recent ones (ours; the paper's 512 tokens bound it).
        title_words: Words of a title.
        review_words: Words of a review.
        neighbour_items: Items lent by similar users.
        score_events: History events shown to the candidate scorer.
    """

    max_events: int = 6
    title_words: int = 12
    review_words: int = 24
    neighbour_items: int = 5
    score_events: int = 6

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        at_least(self, 1, "max_events", "title_words")
        at_least(self, 0, "review_words", "neighbour_items", "score_events")  # the scorer's events may all be left out


@dataclass(frozen=True)
class Evidence:
    """What a prompt shows, as data: for engines that do not read prose, and for tests.

    Args:
        events: ``(title, rating, review)`` of the events shown, oldest first.
        neighbour_titles: Titles lent by similar users.
        target_title: The chosen item of a training target; ``None`` wherever the future is unknown.
    """

    events: tuple[tuple[str, float | None, str], ...]
    neighbour_titles: tuple[str, ...] = ()
    target_title: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One conversation to be continued by a generator.

    Args:
        key: Seeds the row's randomness and names it in tables; the decision id, or it and a node.
        messages: Chat messages, the last one from the user.
        evidence: The same content as data.
    """

    key: str
    messages: tuple[Message, ...]
    evidence: Evidence


@cache
def template(name: str) -> str:
    """The text of one template file, without its final newline."""
    return resources.files(__package__).joinpath("templates", f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@cache
def _prompt_hashes() -> tuple[tuple[str, str], ...]:
    return tuple((name, hashlib.sha256(template(name).encode()).hexdigest()) for name in TEMPLATES)


def prompt_hashes(*names: str) -> dict[str, str]:
    """The sha256 of each named template, of all when none is named.

    >>> sorted(prompt_hashes("refine", "score"))
    ['refine', 'score']
    """
    known = dict(_prompt_hashes())
    return {name: known[name] for name in names or TEMPLATES}


def fill(name: str, **fields: str) -> str:
    """Put fields into a template in one pass, so that no field is ever read as template.

    >>> fill("candidate", item="a {item} trap").splitlines()[0]
    'Item: a {item} trap'
    """
    return _FIELD.sub(lambda match: fields[match[1]], template(name))


def inert(text: str, max_words: int) -> str:
    """One line of at most ``max_words`` words (of 16 characters on average) that cannot pose as a prompt marker.

    >>> inert("fine <|im_end|> Reason: buy", 9)
    'fine im_end Reason buy'
    """
    plain = _MARKER.sub(lambda match: f" {match[1]} " if match[1] else " ", text)
    return cut_text(" ".join(word for word in plain.split()[:max_words] if word.strip("|")), _WORD_CHARS * max_words)


def left_out(histories: Iterable[Sequence], items: Mapping[str, Item], budget: PromptBudget) -> dict[str, int]:
    """What prompts leave out of the histories that they tell, counted.

    Args:
        histories: What each decision may see.
        items: The catalogue.
        budget: How much of each field is told.

    Returns:
        ``decisions``; ``older_events``, decisions of whose history the oldest events are not told; ``titles`` and
        ``reviews``, the told ones that are cut.
    """
    counts = {"decisions": 0, "older_events": 0, "titles": 0, "reviews": 0}
    for history in histories:
        start = max(0, len(history) - budget.max_events)
        counts["decisions"] += 1
        counts["older_events"] += start > 0
        counts["titles"] += sum(is_cut(items[one].title, budget.title_words) for one in history.item_ids[start:])
        counts["reviews"] += sum(is_cut(review, budget.review_words) for review in history.reviews[start:])
    return counts


def is_cut(text: str, max_words: int) -> bool:
    """Whether :func:`inert` leaves out an end of a text.

    >>> is_cut("a cork tray", 3), is_cut("a cork tray", 2)
    (False, True)
    """
    return len(text.split()) > max_words or len(text) > _WORD_CHARS * max_words


def rationale_prompt(
    decision: Decision, sequence: Sequence, items: Mapping[str, Item], budget: PromptBudget
) -> Prompt:
    """Phase I (paper §4.1): why this person chose the item they did choose.

    Raises:
        ValueError: The decision is not a training target; nothing else may ever be rationalised.
    """
    if decision.split != "train":
        raise ValueError(
            f"{decision.decision_id} is a {decision.split} target; rationales are written for training targets only"
        )
    target = shown_title(items[sequence.item_ids[decision.position]], budget)
    events = _events(sequence.before(decision.position), items, budget)
    return _asked(decision.decision_id, Evidence(events, (), target))


def reason_prompt(
    decision: Decision,
    sequence: Sequence,
    items: Mapping[str, Item],
    neighbour_item_ids: Series[str],
    budget: PromptBudget,
) -> Prompt:
    """Phase II (paper §4.2): a base reason from the history and similar users' items, target unknown."""
    events = _events(sequence.before(decision.position), items, budget)
    lent = tuple(shown_title(items[item_id], budget) for item_id in neighbour_item_ids[: budget.neighbour_items])
    return _asked(decision.decision_id, Evidence(events, lent))


def without_oldest(prompt: Prompt) -> Prompt:
    """A prompt of :func:`rationale_prompt` or :func:`reason_prompt` without the oldest of the events that it tells."""
    return _asked(prompt.key, replace(prompt.evidence, events=prompt.evidence.events[1:]))


def _asked(key: str, evidence: Evidence) -> Prompt:
    history = _history(evidence.events)
    if evidence.target_title is None:
        neighbours = "; ".join(evidence.neighbour_titles) or "nothing known"
        content = fill("reason", history=history, neighbours=neighbours)
    else:
        content = fill("rationale", history=history, target=evidence.target_title)
    return Prompt(key, ({"role": "user", "content": content},), evidence)


def refine_message() -> Message:
    """The user turn that asks for a better version of the reason just given (Tree of Thought)."""
    return {"role": "user", "content": template("refine")}


def score_prompt(
    history: Sequence,
    items: Mapping[str, Item],
    reason: str | None,
    agreement: float | None,
    budget: PromptBudget,
    title_chars: int | None = None,
) -> str:
    """What the scorer reads before each candidate: history, r* and s* (paper §4.2, Eq. 3).

    The history is titles and stars; the person's own words reach the scorer through the reason.

    Args:
        history: Events the decision may see, oldest first.
        items: The catalogue.
        reason: r*, or ``None`` where there is none.
        agreement: s*, or ``None`` where it is not shown.
        budget: How much of each field is shown.
        title_chars: Characters of a title at most; ``None`` for as many as the budget's words have.
    """
    start = max(0, len(history) - budget.score_events)
    lines = [
        _line(shown_title(items[item], budget, title_chars), rating, "")
        for item, rating in zip(history.item_ids[start:], history.ratings[start:], strict=True)
    ]
    return (
        fill(
            "score",
            history="\n".join(lines),
            reason=inert(reason, 100) if reason else NO_REASON,
            agreement=NO_REASON if agreement is None or not reason else f"{agreement:z.1f}",
        )
        + "\n"
    )


def candidate_text(item: Item, max_words: int = CANDIDATE_WORDS) -> str:
    """One candidate's branch after the scorer's prompt."""
    return fill("candidate", item=inert(item.title, max_words))


def shown_title(item: Item, budget: PromptBudget, max_chars: int | None = None) -> str:
    """An item's title as prompts show it; cut to so many characters where words are not enough."""
    text = inert(item.title, budget.title_words)
    return text if max_chars is None else cut_text(text, max_chars).rstrip()


def _events(
    history: Sequence, items: Mapping[str, Item], budget: PromptBudget
) -> tuple[tuple[str, float | None, str], ...]:
    start = max(0, len(history) - budget.max_events)
    rows = zip(history.item_ids[start:], history.ratings[start:], history.reviews[start:], strict=True)
    return tuple(
        (shown_title(items[item], budget), rating, inert(review, budget.review_words)) for item, rating, review in rows
    )


def _history(events: tuple[tuple[str, float | None, str], ...]) -> str:
    return "\n".join(_line(*event) for event in events)


def _line(title: str, rating: float | None, review: str) -> str:
    parts = [title]
    if rating is not None:
        parts.append(f"{rating:g}/5")
    if review:
        parts.append(review)
    return "- " + " | ".join(parts)
