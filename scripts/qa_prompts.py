"""What every system shows the language model before it answers, cut to one token budget.

* ``standard``: the context; * ``cot``: the context and a thought about it;
* ``act``: two paragraphs, looked up one after the other; * ``react+cot``: the same, with a thought before each lookup;
* ``pulse``: the context and the selected rationale.

A lookup takes the paragraph with the highest BM25, first for the question, then for the question and what was read.
All thoughts are the language model's own before tuning. Long paragraphs lose their ends, by equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qa_questions import Question
from qa_rationales import Pools, asked, plain
from qa_selection import Scores, bm25

from pulse_hf.reasoning.chat_tokens import ChatTokens
from pulse_hf.reasoning.generator import Generator, Sampling

THINK = "What should be looked up, and why? One sentence."
CONCLUDE = "Think step by step, in one sentence."
ANSWER = "Answer in a few words."
THOUGHT_TOKENS = 48
THOUGHTS = Sampling(max_new_tokens=THOUGHT_TOKENS)


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt.

    Args:
        text: The user's message.
        num_cut: Paragraphs that lost words to the budget.
        places: The paragraphs shown, in that order.
    """

    text: str
    num_cut: int
    places: tuple[int, ...]


class Cutter:
    """Shortens texts by tokens of the language model.

    Args:
        chat: Of the language model.
    """

    def __init__(self, chat: ChatTokens) -> None:
        self.chat = chat

    def __call__(self, text: str, most: int) -> str:
        """The first ``most`` tokens as text."""
        ids = self._ids(text)
        return text if len(ids) <= most else str(self.chat.tokenizer.decode(ids[:most])).rstrip("�").strip()

    def length(self, text: str) -> int:
        """Its number of tokens."""
        return len(self._ids(text))

    def prompt_length(self, text: str) -> int:
        """Tokens of a conversation of this one message."""
        return len(self.chat.encode([({"role": "user", "content": text},)])[0])

    def _ids(self, text: str) -> list[int]:
        return list(self.chat.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """Deal out tokens so that all get the same but those that need less.

    >>> shares([10, 50, 40], 70)
    [10, 30, 30]
    """
    given = [0] * len(lengths)
    for rank, place in enumerate(sorted(range(len(lengths)), key=lambda one: lengths[one])):
        given[place] = min(lengths[place], max(0, room) // (len(lengths) - rank))
        room -= given[place]
    return given


def tell(
    question: Question, places: Sequence[int], thoughts: Sequence[str], ask: str, cut: Cutter, room: int
) -> Shown:
    """One prompt of at most ``room`` tokens.

    Args:
        question: Its labels are not read.
        places: Paragraphs to show.
        thoughts: Lines below the question, each cut to ``THOUGHT_TOKENS``.
        ask: The last line.
        cut: Counts and cuts.
        room: Tokens of the whole prompt.

    Raises:
        ValueError: Not even the question fits.
    """
    texts = [question.paragraphs[place].text for place in places]
    lines = [f"Reason: {cut(text, THOUGHT_TOKENS)}" for text in thoughts]
    foot = "\n".join([f"Question: {question.text}", *lines, ask])
    lengths = [cut.length(text) for text in texts]
    left = room - cut.prompt_length(f"\n\n{foot}") - len(texts)
    while left >= 0:
        given = shares(lengths, left)
        kept = [cut(text, most) for text, most in zip(texts, given, strict=True)]
        text = "\n".join([*kept, "", foot])
        over = cut.prompt_length(text) - room
        if over <= 0:
            return Shown(text, sum(most < length for most, length in zip(given, lengths, strict=True)), tuple(places))
        left -= over
    raise ValueError(f"question {question.question_id} does not fit into {room} tokens; give it a larger --max-length")


def pulse_thoughts(questions: Sequence[Question], pools: Pools, scores: Scores) -> dict[str, tuple[str, ...]]:
    """The rationale with the highest score, the first of equals (Eq. 2)."""
    return {
        one.question_id: (pools[one.question_id][int(np.argmax(scores[one.question_id]))].text,) for one in questions
    }


def cot_thoughts(
    questions: Sequence[Question], generator: Generator, cut: Cutter, room: int
) -> dict[str, tuple[str, ...]]:
    """One thought about the whole context."""
    return _thoughts({one.question_id: tell(one, _all(one), (), CONCLUDE, cut, room) for one in questions}, generator)


def looked_up(question: Question, seen: Sequence[int], thought: str = "") -> int:
    """The unseen paragraph with the highest BM25 for question, paragraphs read and thought; the first of equals."""
    texts = [one.text for one in question.paragraphs]
    worth = bm25(" ".join([question.text, *(texts[place] for place in seen), thought]), texts)
    worth[list(seen)] = -np.inf
    return int(np.argmax(worth))


def act_places(questions: Sequence[Question]) -> dict[str, tuple[int, ...]]:
    """The two paragraphs of two lookups without thoughts."""
    places = {}
    for one in questions:
        first = looked_up(one, ())
        places[one.question_id] = (first, looked_up(one, (first,)))
    return places


def react(
    questions: Sequence[Question], generator: Generator, cut: Cutter, room: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """Thought, lookup, thought, lookup, thought: the paragraphs and all thoughts."""
    places: dict[str, tuple[int, ...]] = {one.question_id: () for one in questions}
    thoughts: dict[str, tuple[str, ...]] = {one.question_id: () for one in questions}
    for ask in (THINK, THINK, CONCLUDE):
        shown = {
            one.question_id: tell(one, places[one.question_id], thoughts[one.question_id], ask, cut, room)
            for one in questions
        }
        new = _thoughts(shown, generator)
        for one in questions:
            key = one.question_id
            thoughts[key] += new[key]
            if ask == THINK:
                places[key] += (looked_up(one, places[key], " ".join(new[key])),)
    return places, thoughts


def prompts_of(
    questions: Sequence[Question],
    cut: Cutter,
    room: int,
    *,
    places: dict[str, tuple[int, ...]] | None = None,
    thoughts: dict[str, tuple[str, ...]] | None = None,
) -> dict[str, Shown]:
    """What a system shows for each question before it answers.

    Args:
        questions: Their labels are not read.
        cut: Counts and cuts.
        room: Tokens of a prompt.
        places: The paragraphs of each question; all if left out.
        thoughts: The lines below each question; none if left out.
    """
    return {
        one.question_id: tell(
            one,
            _all(one) if places is None else places[one.question_id],
            () if thoughts is None else thoughts[one.question_id],
            ANSWER,
            cut,
            room,
        )
        for one in questions
    }


def _thoughts(shown: dict[str, Shown], generator: Generator) -> dict[str, tuple[str, ...]]:
    prompts = [asked(key, one.text) for key, one in shown.items()]
    replies = generator.generate(prompts, width=1, sampling=THOUGHTS, seed=0)  # greedy: no draw, so no seed
    said = (plain(texts[0].text) for texts in replies)
    return {key: (text,) if text else () for key, text in zip(shown, said, strict=True)}


def _all(question: Question) -> tuple[int, ...]:
    return tuple(range(len(question.paragraphs)))
