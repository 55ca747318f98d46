"""The systems of a report, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_hf.artifacts import read_table
from pulse_hf.evaluation.baselines import (
    a_llmrec,
    bm25,
    bm25_reviews,
    chance,
    encoder_tuned,
    item_knn,
    popularity,
    repeat,
    sasrec,
    title_similarity,
)
from pulse_hf.evaluation.fusion import gated
from pulse_hf.evaluation.fusion.fusion import INGREDIENTS, REVIEWS, TUNED
from pulse_hf.evaluation.fusion.joined import gated_scores, joining, stacked_scores
from pulse_hf.evaluation.our_scores import (
    a_llmrec_with_reasons,
    agreements,
    fitted_with_titles,
    slm_scores,
    vote,
    votes_of,
    with_reasons,
    with_votes,
)
from pulse_hf.evaluation.score_book import ScoreBook, System

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OURS", "has_reviews", "systems"]

OURS = ("pulse", "pulse-text", "pulse-fused", "thought-space")
VOTES = {
    "reason": "votes-of-reason",
    "behaviour": "votes-of-behaviour",
    "reason, title": "title-near-reason",
    "behaviour, title": "title-near-behaviour",
}
"""What stands beside the logit in ``pulse``, by its name there."""
_REASON_MODELS = ("sequential/sasrec", "thought_space/model")
_SLM_STAGES = ("sequential", "candidates", "rationales", "thought-space", "thoughts", "recommender")


def systems(book: ScoreBook, *, l2: float) -> dict[str, System]:
    """Every system this package knows, by name; nothing is loaded until it is scored.

    Args:
        book: Where the parts of the fused systems come from.
        l2: Pull to zero of the stackers' weights.
    """
    named = {system.name: system for system in _without_reasons()}
    votes = _votes(book.study.run)
    named |= {system.name: system for system in (*votes, *_with_reasons(book, votes))}
    return named | {system.name: system for system in _joining(named, book, [one.name for one in votes], l2=l2)}


def _without_reasons() -> Iterable[System]:
    yield System("random", chance.scores)
    yield System("popularity", popularity.scores)
    yield System("log-popularity", popularity.log_popularity)
    yield System("repeat", repeat.scores)
    yield System("item-knn", item_knn.scores)
    yield System("title-similarity", title_similarity.scores, models=("sequential/item_vectors.safetensors",))
    yield System("bm25", bm25.scores)
    yield System(REVIEWS, bm25_reviews.scores)
    yield System("encoder-tuned", encoder_tuned.scores, ("baselines",), ("baselines/encoder-tuned",))
    for name in ("sasrec", "sasrec+text"):
        yield System(name, partial(sasrec.scores, model=name), ("sequential",), (f"sequential/{name}",))
    for name in ("sasrec-bce", "sasrec-gbce", "duorec", "ec4srec", "morec", "ctrl"):
        fitted = partial(sasrec.scores, model=name, stage="baselines")
        yield System(name, fitted, ("baselines",), (f"baselines/{name}",))
    aligned = partial(a_llmrec.scores, model="a-llmrec", thoughts={})
    yield System("a-llmrec", aligned, ("sequential", "baselines"), ("sequential/sasrec", "baselines/a-llmrec"))
    tuned = partial(slm_scores, folder="slm+sft", thoughts={})
    yield System("slm+sft", tuned, ("recommender",), ("recommender/slm+sft",))


def _votes(run: Path) -> list[System]:
    """What stands beside the logit in ``pulse``; all are read at once, and ``known`` keeps those of a split."""
    known: dict[str, list[NDArray[np.float64]]] = {}
    return [
        System(VOTES[name], partial(vote, place=place, known=known), _SLM_STAGES[:-1], _REASON_MODELS)
        for place, name in enumerate(votes_of(run))
    ]


def _with_reasons(book: ScoreBook, votes: list[System]) -> Iterable[System]:
    yield System("thought-space", agreements, ("rationales", "thought-space"), ("thought_space/model",))
    stages, models = (*_SLM_STAGES[:-1], "baselines"), (*_REASON_MODELS, "baselines/a-llmrec+reason")
    yield System("a-llmrec+reason", a_llmrec_with_reasons, stages, models)
    models = (*_REASON_MODELS, "recommender/pulse-text")
    text = System("pulse-text", partial(with_reasons, folder="pulse-text"), _SLM_STAGES, models)
    yield text
    parts = [text, *votes] if votes else []
    scores = partial(with_votes, book=book, parts=parts) if votes else partial(with_reasons, folder="pulse")
    models = (*_REASON_MODELS, "recommender/pulse")
    yield System("pulse", scores, _SLM_STAGES, models, tuple(one.name for one in parts))


def _joining(named: Mapping[str, System], book: ScoreBook, votes: list[str], *, l2: float) -> Iterable[System]:
    """The fusions: exactly one stacker over exactly the same ingredients, with the thoughts and without.

    Without them is without the scorer that reads them, and with the same scorer tuned without reasons in its place.
    """
    run = book.study.run
    tuned = tuple(name for name in TUNED if (run / "baselines" / name).exists())
    shared = (*INGREDIENTS, *((REVIEWS,) if has_reviews(run) else ()), *tuned)
    # Not `pulse` as one: what the logit and each vote count may differ between rare and popular items.
    thoughts = ("pulse-text", *votes) if votes else ("pulse",)
    thinking = (*(("thought-space",) if fitted_with_titles(run) else ()), *thoughts)
    for name, ingredients in (
        ("fusion", shared),
        ("fusion+slm+sft", (*shared, "slm+sft")),
        ("encoder-tuned+sasrec", ("sasrec+text", "encoder-tuned")),
        ("pulse-fused", (*shared, *thinking)),
    ):
        parts = [named[one] for one in ingredients]
        yield joining(name, parts, partial(stacked_scores, book=book, parts=parts, l2=l2))
    parts = [named[one] for one in gated.PARTS]
    yield joining("gated", parts, partial(gated_scores, book=book, parts=parts, l2=l2))


def has_reviews(run: Path) -> bool:
    """Whether anybody of the run has written a review."""
    import pyarrow.compute as pc

    path = run / "sequences" / "sequences.parquet"
    return path.exists() and bool(pc.any(pc.not_equal(pc.list_flatten(read_table(path)["reviews"]), "")).as_py())
