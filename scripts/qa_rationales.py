"""Candidate rationales of a question: of every paragraph one that is quoted and some that the language model writes.

The paper's candidates are written by a 27 B model from the whole context; here each is tied to one paragraph, so
that it is known whether the selected one rests on what the answer needs, and the tuned model itself writes them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qa_questions import Question

from pulse_hf.reasoning.generator import Generator, Sampling
from pulse_hf.reasoning.prompts import Evidence, Prompt

Kind = Literal["quoted", "written"]
SAMPLING = Sampling(max_new_tokens=40, temperature=0.7, top_p=0.9)
PARAGRAPH_TOKENS = 160
ASK = "{paragraph}\n\nQuestion: {question}\nIn one sentence, what does this text tell that helps to answer?"
_WORD = re.compile(r"[^\W_]+")
_FUNCTION = frozenset(
    "a an the of in on at to for by with and or is are was were be been do does did has have had who whom whose what "
    "which when where why how that this these those it its as from than both between".split()
)


@dataclass(frozen=True, slots=True)
class Rationale:
    """One candidate.

    Args:
        paragraph: The place of the paragraph it rests on.
        kind: Quoted from it, or written about it.
        text: The rationale, on one line.
    """

    paragraph: int
    kind: Kind
    text: str


Pools = dict[str, list[Rationale]]
"""Question id to its candidates."""


def quoted(question: Question) -> list[Rationale]:
    """Of every paragraph the title and the sentence that shares most rare words with the question.

    What is rare is counted over the sentences of the question's own paragraphs, so nothing comes from elsewhere; the
    first of equal sentences is taken.
    """
    told = [[_words(f"{one.title} {text}") for text in one.sentences] for one in question.paragraphs]
    count = Counter(word for paragraph in told for words in paragraph for word in words)
    num_sentences = sum(map(len, told))
    asked = _words(question.text)

    def worth(words: set[str]) -> float:
        return sum(math.log(1 + num_sentences / count[word]) for word in sorted(words & asked))

    rationales = []
    for place, one in enumerate(question.paragraphs):
        worths = [worth(words) for words in told[place]]
        text = f"{one.title}: {one.sentences[worths.index(max(worths))]}" if worths else one.title
        rationales.append(Rationale(place, "quoted", text))
    return rationales


def written(questions: Sequence[Question], generator: Generator, cut: Any, *, width: int, seed: int) -> Pools:
    """What the language model writes about every paragraph; empty texts are left out.

    Args:
        questions: Whose paragraphs.
        generator: Writes.
        cut: A :class:`qa_prompts.Cutter`.
        width: Texts of each paragraph.
        seed: Of the draws.
    """
    prompts, where = [], []
    for question in questions:
        for place, one in enumerate(question.paragraphs):
            content = ASK.format(paragraph=cut(one.text, PARAGRAPH_TOKENS), question=question.text)
            prompts.append(asked(f"{question.question_id}#{place}", content))
            where.append((question.question_id, place))
    pools: Pools = {question.question_id: [] for question in questions}
    replies = generator.generate(prompts, width=width, sampling=SAMPLING, seed=seed)
    for (question_id, place), texts in zip(where, replies, strict=True):
        said = dict.fromkeys(plain(text.text) for text in texts)
        pools[question_id] += [Rationale(place, "written", text) for text in said if text]
    return pools


def asked(key: str, content: str) -> Prompt:
    """A conversation of one message."""
    return Prompt(key, ({"role": "user", "content": content},), Evidence(()))


def plain(text: str) -> str:
    r"""A reply as one line, without the marker that the embedded model was taught to begin with.

    >>> plain(" Reason: It is\n a film. ")
    'It is a film.'
    """
    return " ".join(text.split()).removeprefix("Reason:").strip()


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if word not in _FUNCTION}
