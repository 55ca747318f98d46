"""HotpotQA's questions in the distractor setting: two readers, one record, one fixed split.

The file of 500 development questions lacks the marks of supporting sentences and keeps those of supporting paragraphs
(its sentences are parted by two spaces); the Hub's dataset names both. Only paragraphs are judged here.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulse_hf.schema import stable_hash

HUB_CONFIG, HUB_SPLIT = "distractor", "validation"
NUM_SUPPORTING = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph of a question's context.

    Args:
        title: Of its page.
        sentences: In order, without the spaces between them.
    """

    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Title and sentences as one line."""
        return f"{self.title}: {' '.join(self.sentences)}"


@dataclass(frozen=True, slots=True)
class Question:
    """One question; the last two fields are labels, which nothing may read of a test question but the metrics.

    Args:
        question_id: The dataset's own.
        text: The question.
        paragraphs: Its context.
        answer: The right answer.
        supporting: For each paragraph whether it is needed for the answer.
    """

    question_id: str
    text: str
    paragraphs: tuple[Paragraph, ...]
    answer: str
    supporting: tuple[bool, ...]


def read_questions(source: str) -> tuple[list[Question], int]:
    """Read all questions of a source.

    Args:
        source: A ``.jsonl.gz`` with ``question_text``, ``contexts`` and ``answers_objects``; a ``.parquet``,
            ``.json`` or ``.jsonl`` file in the schema of ``hotpotqa/hotpot_qa``; or an id of such a dataset on the
            Hub, of which the validation split of the configuration ``distractor`` is taken.

    Returns:
        The questions with exactly two supporting paragraphs, and how many others were dropped.

    Raises:
        FileNotFoundError: A file is named that is not there.
    """
    path = Path(source)
    if path.suffix in (".gz", ".parquet", ".json", ".jsonl") and not path.exists():
        raise FileNotFoundError(f"{source} is not there; give a file or a dataset id such as hotpotqa/hotpot_qa")
    questions = list(_of_file(path) if path.suffix == ".gz" else _of_hub(source))
    kept = [one for one in questions if sum(one.supporting) == NUM_SUPPORTING]
    return kept, len(questions) - len(kept)


def _of_file(path: Path) -> Iterable[Question]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            yield Question(
                row["question_id"],
                row["question_text"].strip(),
                tuple(
                    Paragraph(one["title"], _stripped(re.split(r"\s{2,}", one["paragraph_text"])))
                    for one in row["contexts"]
                ),
                row["answers_objects"][0]["spans"][0],
                tuple(bool(one["is_supporting"]) for one in row["contexts"]),
            )


def _of_hub(source: str) -> Iterable[Question]:
    from datasets import load_dataset

    suffix = Path(source).suffix
    if suffix in (".parquet", ".json", ".jsonl"):
        rows = load_dataset("parquet" if suffix == ".parquet" else "json", data_files=source, split="train")
    else:
        rows = load_dataset(source, HUB_CONFIG, split=HUB_SPLIT)
    return (question_of_row(row) for row in rows)


def question_of_row(row: Mapping[str, Any]) -> Question:
    """A row of ``hotpotqa/hotpot_qa``: ``context`` and ``supporting_facts`` hold parallel lists.

    >>> row = {"id": "q", "question": "Where?", "answer": "here",
    ...        "context": {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]},
    ...        "supporting_facts": {"title": ["B", "B"], "sent_id": [0, 1]}}
    >>> question_of_row(row).supporting, question_of_row(row).paragraphs[0].text
    ((False, True), 'A: One. Two.')
    """
    titles, needed = row["context"]["title"], set(row["supporting_facts"]["title"])
    return Question(
        row["id"],
        row["question"].strip(),
        tuple(
            Paragraph(title, _stripped(sentences))
            for title, sentences in zip(titles, row["context"]["sentences"], strict=True)
        ),
        row["answer"],
        tuple(title in needed for title in titles),
    )


def split_questions(
    questions: Sequence[Question], num_questions: int, num_test: int
) -> tuple[list[Question], list[Question]]:
    """Training and test questions by a stable hash of their ids: the same for every seed and order of the file.

    Args:
        questions: All of them.
        num_questions: How many take part, those with the smallest hashes.
        num_test: How many of those are for testing.

    Raises:
        ValueError: There are too few to leave any for training.
    """
    taken = sorted(questions, key=lambda one: stable_hash("question-answering", one.question_id))[:num_questions]
    if not 0 < num_test < len(taken):
        raise ValueError(f"{num_test} test questions of {len(taken)}; expected some for testing and some for training")
    return taken[num_test:], taken[:num_test]


def _stripped(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in (" ".join(one.split()) for one in sentences) if text)
