"""How the rows with a reason are scored: PULSE's own, and what else reads its thoughts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pulse_hf.artifacts import MANIFEST, ArtifactError, read_manifest, settings_of
from pulse_hf.evaluation.baselines import a_llmrec
from pulse_hf.evaluation.fusion.joined import rows_of_parts
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.reasoning.examples import load_thoughts
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.reasoning.examples import Thought

__all__ = [
    "a_llmrec_with_reasons",
    "agreements",
    "fitted_with_titles",
    "slm_scores",
    "vote",
    "votes_of",
    "with_reasons",
    "with_votes",
]


def slm_scores(
    study: Study, decisions: Sequence[Decision], *, folder: str, thoughts: Mapping[str, Thought]
) -> list[NDArray[np.float64]]:
    """Logits of a tuned scorer, from the text alone.

    Args:
        study: Shared data.
        decisions: What to score.
        folder: The scorer's folder inside ``recommender/``.
        thoughts: By decision id; a decision without one is scored without a reason.
    """
    from pulse_hf.models.device import computes_in_bf16
    from pulse_hf.models.embedded import pinned_name
    from pulse_hf.models.scorer.adapter import load_scorer, read_record
    from pulse_hf.models.scorer.processing_scorer import score_sets
    from pulse_hf.reasoning.examples import PromptShape, examples_of_sets

    where = study.run / "recommender" / folder
    record = read_record(where)
    # A commit of the Hub pins the base model; the embedded models and local folders are checked by their weights.
    model, processor = load_scorer(pinned_name(record.base), where, merge=True)
    sets = [study.sets[decision.decision_id] for decision in decisions]
    shape = PromptShape.from_dict(record.prompt)
    shared = study.shared if shape.features else None
    scored = examples_of_sets(sets, study.sequences, study.items, thoughts, shape, processor.prompt_fits, shared)
    # Where the hardware has it; tuning computes in bfloat16, too.
    rows = score_sets(model, processor, scored, bf16=computes_in_bf16(model.device.type))
    return [np.array(row) for row in rows]


def fitted_with_titles(run: Path) -> bool:
    """Whether candidates have a place in the run's Thought Space."""
    manifest = run / "thought_space" / MANIFEST
    return manifest.exists() and bool(settings_of(manifest.parent).get("titles"))


def agreements(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Agreement of each candidate's title with the behaviour: the space alone, without reason or language model."""
    histories, candidates = study.histories(decisions), study.candidates(decisions)
    shared = study.shared  # what votes have encoded before is not encoded again, so that the row's seconds may lack it
    told = [shared.told(history, study.items) for history in histories]
    shared.read((), told, (study.items[item].title for items in candidates for item in items))
    rows = zip(told, candidates, strict=True)
    return [np.array(shared.near(text, [study.items[item].title for item in items])) for text, items in rows]


def with_reasons(study: Study, decisions: Sequence[Decision], *, folder: str) -> list[NDArray[np.float64]]:
    """As :func:`slm_scores` with the run's own thoughts, of which none may lack."""
    return slm_scores(study, decisions, folder=folder, thoughts=_thoughts_of(study, decisions))


def votes_of(run: Path) -> tuple[str, ...]:
    """The votes beside the logit in ``pulse``, if the run has tuned it with such and kept the logit's own adapter."""
    from pulse_hf.models.scorer.adapter import RECORD, read_record
    from pulse_hf.reasoning.examples import PromptShape

    folder = run / "recommender"
    if not ((folder / "pulse" / RECORD).exists() and (folder / "pulse-text").is_dir()):
        return ()
    return PromptShape.from_dict(read_record(folder / "pulse").prompt).features


def vote(
    study: Study, decisions: Sequence[Decision], *, place: int, known: dict[str, list[NDArray[np.float64]]]
) -> list[NDArray[np.float64]]:
    """One of the votes; all of them are read at once, and ``known`` keeps those of a split."""
    from pulse_hf.models.scorer.adapter import read_record
    from pulse_hf.reasoning.examples import PromptShape, features_of_sets

    if not decisions:
        return []
    split = decisions[0].split
    if split not in known:
        shape = PromptShape.from_dict(read_record(study.run / "recommender" / "pulse").prompt)
        sets, thoughts = [study.sets[one.decision_id] for one in decisions], _thoughts_of(study, decisions)
        read = features_of_sets(sets, study.sequences, study.items, thoughts, shape, study.shared)
        known[split] = [np.array(row) for row in read]
    return [row[:, place] for row in known[split]]


def _weights(run: Path, names: Sequence[str]) -> list[float]:
    fitted = read_manifest(run / "recommender")["counts"]["systems"]["pulse"].get("weights", {})
    return [float(fitted.get(name, 0.0)) for name in names]


def with_votes(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, parts: Sequence[System]
) -> list[NDArray[np.float64]]:
    """``pulse``: what ``pulse-text`` gives, weighed, and the votes beside it.

    Both are one fit (:func:`pulse_hf.training.scorer_fit.train_scorer`), so that no text is read twice.
    """
    if not decisions:
        return []
    weights = dict(zip(parts, _weights(study.run, ("text", *votes_of(study.run))), strict=True))
    counting = [part for part in parts if weights[part]] or parts[-1:]  # what counts nothing need not be read
    rows = rows_of_parts(book, counting, decisions[0].split)
    weighed = [[weights[part] * row for row in rows[part.name]] for part in counting]
    return [np.sum(of_one, axis=0) for of_one in zip(*weighed, strict=True)]


def a_llmrec_with_reasons(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """What the baseline ``a-llmrec+reason`` gives, with the run's own thoughts, of which none may lack."""
    return a_llmrec.scores(study, decisions, model="a-llmrec+reason", thoughts=_thoughts_of(study, decisions))


def _thoughts_of(study: Study, decisions: Sequence[Decision]) -> dict[str, Thought]:
    thoughts = load_thoughts(study.run)
    missing = [d.decision_id for d in decisions if d.decision_id not in thoughts]
    if missing:
        raise ArtifactError(
            f"{study.run / 'thoughts'}: {len(missing)} of {len(decisions)} decisions have no thought, the first is "
            f"{missing[0]}. All systems need the same decisions: make candidates and thoughts for the same."
        )
    return thoughts
