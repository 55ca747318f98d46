"""Which candidate rationale fits a question best: one score per candidate from each of the compared selectors.

Eq. 2 with the question in the place of b_u. The space fitted on questions sees training questions alone; those are
judged by the fold's space that was fitted without them, so that their rationales are selected as those of test ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qa_questions import Question
from qa_rationales import Pools

from pulse_hf.artifacts import settings_of
from pulse_hf.models.device import computes_in_bf16
from pulse_hf.schema import fold_of, stable_hash
from pulse_hf.training.thought_pairs import Pair
from pulse_hf.training.thought_space import ThoughtSpaceSettings

if TYPE_CHECKING:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

Scores = dict[str, NDArray[np.float64]]
"""Question id to one score per candidate of its pool, higher is better."""
SPACE = ThoughtSpaceSettings()
_BATCH = 64


def by_chance(questions: Sequence[Question], pools: Pools, *, seed: int) -> Scores:
    """A number for each candidate that depends on its place and the seed alone."""
    return {
        one.question_id: np.array(
            [
                stable_hash("selection", seed, one.question_id, place) / 2**64
                for place in range(len(pools[one.question_id]))
            ]
        )
        for one in questions
    }


def by_bm25(questions: Sequence[Question], pools: Pools) -> Scores:
    """BM25 of each candidate for the question's words, over the question's own candidates."""
    return {
        one.question_id: bm25(one.text, [candidate.text for candidate in pools[one.question_id]]) for one in questions
    }


def bm25(query: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """BM25 (Lucene's form) of the texts for a query; 0 where no word is shared."""
    import bm25s

    words = bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
    asked = bm25s.tokenize([query], return_ids=False, show_progress=False)[0]
    if not any(words):
        return np.zeros(len(texts))
    retriever = bm25s.BM25()
    retriever.index(words, show_progress=False)
    known = [word for word in asked if word in retriever.vocab_dict]
    return retriever.get_scores(known).astype(float) if known else np.zeros(len(texts))


def by_encoder(questions: Sequence[Question], pools: Pools) -> Scores:
    """Cosine of the frozen encoder that the spaces start from, whole."""
    from pulse_hf.training.thought_space import start_model

    return by_space(start_model(SPACE), questions, pools)


def by_start(folder: Path, questions: Sequence[Question], pools: Pools) -> Scores:
    """Agreement in a space as it was before it was fitted.

    Args:
        folder: A run's stage ``thought_space``.
        questions: What is asked.
        pools: Candidates by question.
    """
    from pulse_hf.training.thought_space import start_model

    return by_space(start_model(ThoughtSpaceSettings(**settings_of(folder))), questions, pools)


def by_space(space: PulseThoughtSpaceModel, questions: Sequence[Question], pools: Pools) -> Scores:
    """Agreement in a Thought Space: the question by the history tower, the candidates by the rationale tower."""
    space.encodes_in_bf16 = computes_in_bf16(space.device.type)  # as the road selects; alike for every space
    asked = space.encode_histories([one.text for one in questions]).numpy()
    texts = [candidate.text for one in questions for candidate in pools[one.question_id]]
    told = space.encode_rationales(texts).numpy()
    ends = np.cumsum([len(pools[one.question_id]) for one in questions])[:-1]
    rows = zip(questions, asked, np.split(told, ends), strict=True)
    return {one.question_id: (vectors @ vector).astype(float) for one, vector, vectors in rows}


def question_pairs(questions: Sequence[Question], pools: Pools) -> list[Pair]:
    """What the space of questions learns from: a question and the quoted rationale of each supporting paragraph.

    Negatives are other questions' rationales, as in the paper (Eq. 1); a question's own distractors are none.
    """
    return [
        Pair(
            decision_id=f"{one.question_id}#{candidate.paragraph}",
            user_id=one.question_id,
            target_id=one.paragraphs[candidate.paragraph].title,
            training_history=one.text,
            history=one.text,
            masked_history=one.text,
            rationale=candidate.text,
            masked_rationale=candidate.text,
        )
        for one in questions
        for candidate in pools[one.question_id]
        if candidate.kind == "quoted" and one.supporting[candidate.paragraph]
    ]


def fit_spaces(pairs: list[Pair], work: Path, *, seed: int) -> dict[str, Any]:
    """Fit the space of questions, ``model`` on all pairs and ``fold-<f>`` without those of a fold.

    Returns:
        Pairs and validation MRR of each, before and after.
    """
    from pulse_hf.training.thought_space import Fitting, start_model

    fitting = Fitting(start_model(SPACE), pairs, SPACE, seed)
    record = {}
    for fold in (None, *range(SPACE.num_folds)):
        name = "model" if fold is None else f"fold-{fold}"
        _, _, fitted = fitting.fit(work, name, fold)
        quality = {when: found["titles"]["mrr"] for when, found in fitted["validation"].items()}
        record[name] = {"pairs": fitted["pairs"], "mrr": quality, "best_epoch": fitted["best_epoch"]}
    return record


def by_fitted_spaces(
    work: Path, train: Sequence[Question], test: Sequence[Question], pools: Pools, *, seed: int
) -> Scores:
    """Agreement in the space of questions: training questions in their fold's, test questions in the full one."""
    scores = by_space(load_space(work / "model"), test, pools)
    for fold in range(SPACE.num_folds):
        mine = [one for one in train if fold_of(one.question_id, SPACE.num_folds, seed) == fold]
        scores |= by_space(load_space(work / f"fold-{fold}"), mine, pools) if mine else {}
    return scores


def load_space(folder: Path) -> PulseThoughtSpaceModel:
    """A saved Thought Space."""
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

    space: PulseThoughtSpaceModel = PulseThoughtSpaceModel.from_pretrained(str(folder)).eval()
    return space


def by_likelihood(questions: Sequence[Question], pools: Pools, generator: TransformersGenerator) -> Scores:
    """Mean log-probability of each candidate's tokens under the language model, after the question alone.

    After the question and not after the paragraph, so that candidates of different paragraphs are measured alike.
    """
    prompts = generator.chat.encode([({"role": "user", "content": f"Question: {one.text}"},) for one in questions])
    rows = []
    for one, prompt in zip(questions, prompts, strict=True):
        for place, candidate in enumerate(pools[one.question_id]):
            text = generator.chat.inert(candidate.text)
            told = generator.chat.tokenizer(text, add_special_tokens=False)["input_ids"] or prompt[-1:]
            rows.append((one.question_id, place, prompt, told))
    scores = {one.question_id: np.zeros(len(pools[one.question_id])) for one in questions}
    rows.sort(key=lambda row: len(row[2]) + len(row[3]))
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        for (key, place, *_), value in zip(batch, _log_likelihoods(generator.model, batch), strict=True):
            scores[key][place] = value
    return scores


def _log_likelihoods(model: Any, rows: Sequence[tuple[str, int, list[int], list[int]]]) -> list[float]:
    import torch

    longest = max(len(prompt) + len(told) for *_, prompt, told in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
    labels = torch.full_like(ids, -100)
    for row, (*_, prompt, told) in enumerate(rows):
        end = len(prompt) + len(told)
        ids[row, :end] = torch.tensor(prompt + told)
        labels[row, len(prompt) : end] = torch.tensor(told)
    with torch.inference_mode():
        # Padding stands on the right, where a causal model's real tokens do not see it.
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100
        logits = model.get_output_embeddings()(hidden[wanted]).float()
        losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
    per_row = losses.split(wanted.sum(1).tolist())
    values = [-float(loss.mean()) for loss in per_row]
    if not all(math.isfinite(value) for value in values):
        raise FloatingPointError("a rationale's likelihood is not finite; the model's weights are damaged")
    return values
