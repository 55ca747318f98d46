"""The systems of a report: each a name, a way to score, and what it costs.

Scores are kept on disk as they are made, so an interrupted evaluation resumes, and whatever is built
from other systems' scores (``fusion``, ``pulse-fused``) reuses the very same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import (
    MANIFEST,
    ArtifactError,
    read_json,
    read_manifest,
    read_table,
    settings_of,
    write_json,
    write_table,
)
from pulse_hf.evaluation.baselines import (
    a_llmrec,
    bm25,
    bm25_reviews,
    calibration,
    chance,
    encoder_tuned,
    fusion,
    gated,
    item_knn,
    popularity,
    repeat,
    sasrec,
    title_similarity,
)
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.reasoning.examples import Thought

    Row = NDArray[np.float64] | None
    Scores = Callable[[Study, Sequence[Decision]], Sequence[Row]]

__all__ = [
    "OURS",
    "ScoreBook",
    "System",
    "fitted_with_titles",
    "has_reviews",
    "load_thoughts",
    "slm_scores",
    "systems",
]

OURS = ("pulse", "pulse-text", "pulse-fused", "thought-space")
VOTES = {
    "reason": "votes-of-reason",
    "behaviour": "votes-of-behaviour",
    "reason, title": "title-near-reason",
    "behaviour, title": "title-near-behaviour",
}
"""What stands beside the logit in ``pulse``, by its name there."""
_REASON_MODELS = ("sequential/sasrec", "thought_space")
_SLM_STAGES = ("sequential", "candidates", "rationales", "thought-space", "thoughts", "recommender")


@dataclass(frozen=True)
class System:
    """One row of the report.

    Args:
        name: The name in the report (DESIGN §8.7).
        scores: Scores of every candidate of every decision; ``None`` for an invalid answer.
        stages: Stages whose work it rests on, for its cost.
        models: Files or folders of the run that it loads, for its size.
        parts: Systems whose scores it joins.
    """

    name: str
    scores: Scores
    stages: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


class ScoreBook:
    """Scores by system and split, computed once and kept in ``<folder>/<split>/<system>.parquet``.

    Args:
        folder: Where the tables lie.
        study: The shared data.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder = folder
        self.study = study
        self.stackers: dict[str, dict[str, Any]] = {}

    def rows(self, system: System, split: str) -> list[Row]:
        """The system's scores of all decisions of a split, in the study's order.

        Args:
            system: What scores; not asked if its scores are kept.
            split: ``validation`` or ``test``.

        Raises:
            ArtifactError: The kept scores are of other decisions.
            ValueError: The system gave other numbers of rows or of scores than there are decisions or candidates.
        """
        decisions = self.study.split(split)
        path = self.folder / split / f"{system.name}.parquet"
        # The file beside the scores is written last, so both are there or both are made again.
        if not path.with_name(f"{system.name}.json").exists():
            started = time.perf_counter()
            rows = list(system.scores(self.study, decisions))
            self._write(path, system.name, decisions, rows)
            beside = {
                "seconds": round(time.perf_counter() - started, 3),
                "stacker": self.stackers.get(system.name),
            }
            write_json(path.with_name(f"{system.name}.json"), beside)
        return self._read(path, decisions)

    def beside(self, system: System, split: str) -> dict[str, Any]:
        """What is kept beside the scores: ``seconds`` that scoring took, and the fitted ``stacker`` if any."""
        return dict(read_json(self.folder / split / f"{system.name}.json"))

    def _write(self, path: Path, name: str, decisions: Sequence[Decision], rows: Sequence[Row]) -> None:
        if len(rows) != len(decisions):
            raise ValueError(f"{name} gave {len(rows)} rows of scores for {len(decisions)} decisions")
        table = []
        for decision, row, items in zip(decisions, rows, self.study.candidates(decisions), strict=True):
            if row is not None and len(row) != len(items):
                raise ValueError(
                    f"{name}, decision {decision.decision_id}: {len(row)} scores for {len(items)} candidates"
                )
            scores = None if row is None else [float(value) for value in row]
            table.append(
                {**asdict(decision), "decision_id": decision.decision_id, "item_ids": items, "scores": scores}
            )
        write_table(path, "scores", table)

    def _read(self, path: Path, decisions: Sequence[Decision]) -> list[Row]:
        table = read_table(path)
        if table["decision_id"].to_pylist() != [d.decision_id for d in decisions]:
            raise ArtifactError(f"{path} holds other decisions than the candidates; delete it to score anew")
        return [None if row is None else np.array(row) for row in table["scores"].to_pylist()]


def load_thoughts(run: Path) -> dict[str, Thought]:
    """The chosen reason and its agreement by decision id."""
    from pulse_hf.reasoning.examples import Thought

    rows = read_table(run / "thoughts" / "thoughts.parquet").select(["decision_id", "reason", "agreement"]).to_pylist()
    return {row["decision_id"]: Thought(row["reason"] or None, row["agreement"]) for row in rows}


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
    from pulse_hf.models.precision import computes_in_bf16
    from pulse_hf.models.scorer.adapter import load_scorer, read_record
    from pulse_hf.models.scorer.processing_scorer import score_sets
    from pulse_hf.reasoning.examples import PromptShape, examples_of_sets

    where = study.run / "recommender" / folder
    record = read_record(where)
    # A commit of the Hub pins the base model; the embedded models and local folders are checked by their weights.
    pinned = f"@{record.base['revision']}" if len(record.base["revision"]) == 40 else ""
    model, processor = load_scorer(record.base["id"] + pinned, where, merge=True)
    sets = [study.sets[decision.decision_id] for decision in decisions]
    shape = PromptShape.from_dict(record.prompt)
    shared = study.shared if shape.features else None
    scored = examples_of_sets(sets, study.sequences, study.items, thoughts, shape, processor.prompt_fits, shared)
    # A score good to 1e-2 changes a rank once in thousands; tuning computes in bfloat16, too.
    rows = score_sets(model, processor, scored, bf16=computes_in_bf16(model.device.type))
    return [np.array(row) for row in rows]


def systems(book: ScoreBook, *, l2: float) -> dict[str, System]:
    """Every system this package knows, by name; nothing is loaded until it is scored.

    Args:
        book: Where the parts of the fused systems come from.
        l2: Pull to zero of the stackers' weights.
    """
    vectors = "sequential/item_vectors.safetensors"
    known = [
        System("random", chance.scores),
        System("popularity", popularity.scores),
        System("repeat", repeat.scores),
        System("item-knn", item_knn.scores),
        System("title-similarity", title_similarity.scores, models=(vectors,)),
        System("bm25", bm25.scores),
        System(fusion.REVIEWS, bm25_reviews.scores),
        System("encoder-tuned", encoder_tuned.scores, ("baselines",), ("baselines/encoder-tuned",)),
        *(
            System(name, partial(sasrec.scores, model=name, stage="baselines"), ("baselines",), (f"baselines/{name}",))
            for name in ("sasrec-bce", "sasrec-gbce", "duorec", "ec4srec", "morec", "ctrl")
        ),
        System(
            "a-llmrec",
            partial(a_llmrec.scores, model="a-llmrec", thoughts={}),
            ("sequential", "baselines"),
            ("sequential/sasrec", "baselines/a-llmrec"),
        ),
        System(
            "a-llmrec+reason",
            _a_llmrec_with_reasons,
            (*_SLM_STAGES[:-1], "baselines"),
            (*_REASON_MODELS, "baselines/a-llmrec+reason"),
        ),
        System("thought-space", _agreements, ("rationales", "thought-space"), ("thought_space/model",)),
        System("sasrec", sasrec.scores, ("sequential",), ("sequential/sasrec",)),
        System(
            "sasrec+text", partial(sasrec.scores, model="sasrec+text"), ("sequential",), ("sequential/sasrec+text",)
        ),
        System("log-popularity", fusion.log_popularity),
        System(
            "slm+sft", partial(slm_scores, folder="slm+sft", thoughts={}), ("recommender",), ("recommender/slm+sft",)
        ),
    ]
    named = {system.name: system for system in known}
    text = partial(_with_reasons, folder="pulse-text")
    named["pulse-text"] = System("pulse-text", text, _SLM_STAGES, (*_REASON_MODELS, "recommender/pulse-text"))
    known_votes: dict[str, list[NDArray[np.float64]]] = {}
    for place, name in enumerate(_features(book.study.run)):
        read = partial(_feature, place=place, known=known_votes)
        named[VOTES[name]] = System(VOTES[name], read, _SLM_STAGES[:-1], _REASON_MODELS)
    voting = [named[VOTES[name]] for name in _features(book.study.run)]
    joined = [named["pulse-text"], *voting] if voting else []
    beside = partial(_with_votes, book=book, parts=joined) if voting else partial(_with_reasons, folder="pulse")
    models, parts = (*_REASON_MODELS, "recommender/pulse"), tuple(one.name for one in joined)
    named["pulse"] = System("pulse", beside, _SLM_STAGES, models, parts)
    # Exactly pulse-fused's ingredients and stacker minus the thoughts (DESIGN §8.7): without the scorer that reads
    # them, and with the same scorer tuned without reasons in its place.
    tuned = tuple(name for name in fusion.TUNED if (book.study.run / "baselines" / name).exists())
    shared = (*fusion.INGREDIENTS, *((fusion.REVIEWS,) if has_reviews(book.study.run) else ()), *tuned)
    # Not `pulse` as one: what the logit and each vote count may differ between rare and popular items.
    thoughts = ("pulse-text", *(one.name for one in voting)) if voting else ("pulse",)
    thinking = (*(("thought-space",) if fitted_with_titles(book.study.run) else ()), *thoughts)
    for name, parts in (
        ("fusion", shared),
        ("fusion+slm+sft", (*shared, "slm+sft")),
        ("encoder-tuned+sasrec", ("sasrec+text", "encoder-tuned")),
        ("pulse-fused", (*shared, *thinking)),
    ):
        joined = [named[part] for part in parts]
        named[name] = _joined(name, joined, partial(_stacked, book=book, name=name, parts=joined, l2=l2))
    gates = [named[part] for part in gated.PARTS]
    named["gated"] = _joined("gated", gates, partial(_gated, book=book, parts=gates, l2=l2))
    return named


def _joined(name: str, parts: Sequence[System], score: Scores) -> System:
    """A system that rests on all that its parts rest on."""
    stages = dict.fromkeys(stage for one in parts for stage in one.stages)
    models = dict.fromkeys(path for one in parts for path in one.models)
    return System(name, score, tuple(stages), tuple(models), tuple(one.name for one in parts))


def fitted_with_titles(run: Path) -> bool:
    """Whether candidates have a place in the run's Thought Space."""
    manifest = run / "thought_space" / MANIFEST
    return manifest.exists() and bool(settings_of(read_manifest(manifest.parent)["fingerprint"]).get("titles"))


def has_reviews(run: Path) -> bool:
    """Whether anybody of the run has written a review."""
    import pyarrow.compute as pc

    path = run / "sequences" / "sequences.parquet"
    return path.exists() and bool(pc.any(pc.not_equal(pc.list_flatten(read_table(path)["reviews"]), "")).as_py())


def _agreements(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
    """Agreement of each candidate's title with the behaviour: the space alone, without reason or language model."""
    histories, candidates = study.histories(decisions), study.candidates(decisions)
    shared = study.shared
    told = [shared.told(history, study.items) for history in histories]
    shared.read((), told, (study.items[item].title for items in candidates for item in items))
    rows = zip(told, candidates, strict=True)
    return [np.array(shared.near(text, [study.items[item].title for item in items])) for text, items in rows]


def _with_reasons(study: Study, decisions: Sequence[Decision], *, folder: str) -> list[NDArray[np.float64]]:
    return slm_scores(study, decisions, folder=folder, thoughts=_thoughts_of(study, decisions))


def _features(run: Path) -> tuple[str, ...]:
    """The votes beside the logit in ``pulse``, if the run has tuned it with such and kept the logit's own adapter."""
    from pulse_hf.models.scorer.adapter import RECORD, read_record
    from pulse_hf.reasoning.examples import PromptShape

    folder = run / "recommender"
    if not ((folder / "pulse" / RECORD).exists() and (folder / "pulse-text").is_dir()):
        return ()
    return PromptShape.from_dict(read_record(folder / "pulse").prompt).features


def _weights(run: Path, names: Sequence[str]) -> list[float]:
    fitted = read_manifest(run / "recommender")["counts"]["systems"]["pulse"].get("weights", {})
    return [float(fitted.get(name, 0.0)) for name in names]


def _feature(
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


def _with_votes(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, parts: Sequence[System]
) -> list[NDArray[np.float64]]:
    """``pulse``: what ``pulse-text`` gives, weighed, and the votes beside it.

    Both are one fit (:func:`pulse_hf.training.scorer_fit.train_scorer`), so that no text is read twice.
    """
    if not decisions:
        return []
    weights = dict(zip(parts, _weights(study.run, ("text", *_features(study.run))), strict=True))
    counting = [part for part in parts if weights[part]] or parts[-1:]  # what counts nothing need not be read
    rows = _whole(book, counting, decisions[0].split)
    weighed = [[weights[part] * row for row in rows[part.name]] for part in counting]
    return [np.sum(of_one, axis=0) for of_one in zip(*weighed, strict=True)]


def _a_llmrec_with_reasons(study: Study, decisions: Sequence[Decision]) -> list[NDArray[np.float64]]:
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


def _stacked(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, name: str, parts: Sequence[System], l2: float
) -> list[NDArray[np.float64]]:
    """Fit on validation, score the decisions' split from the parts' kept scores."""
    validation = study.split("validation")
    rows, gates = _whole(book, parts, "validation"), calibration.events_shares(study, validation)
    fitted = calibration.fit_fusion(rows, gates, study.targets(validation), l2=l2)
    book.stackers[name] = fitted.record()
    return (
        fitted.scores(_whole(book, parts, decisions[0].split), calibration.events_shares(study, decisions))
        if decisions
        else []
    )


def _gated(
    study: Study, decisions: Sequence[Decision], *, book: ScoreBook, parts: Sequence[System], l2: float
) -> list[NDArray[np.float64]]:
    """Two fits on validation: the parts' constants, then what the gate's two sides count."""
    validation = study.split("validation")
    rows, targets = _whole(book, parts, "validation"), study.targets(validation)
    constants = fusion.fit_stacker(rows, targets, l2=l2)
    fitted = fusion.fit_stacker(gated.sides(study, validation, rows, constants), targets, l2=l2)
    book.stackers["gated"] = asdict(fitted)
    rows = _whole(book, parts, decisions[0].split) if decisions else {name: [] for name in gated.PARTS}
    return fitted.scores(gated.sides(study, decisions, rows, constants))


def _whole(book: ScoreBook, parts: Sequence[System], split: str) -> dict[str, list[NDArray[np.float64]]]:
    ingredients = {}
    for part in parts:
        rows = book.rows(part, split)
        whole = [row for row in rows if row is not None]
        if len(whole) != len(rows):
            raise ValueError(f"{part.name} has {len(rows) - len(whole)} invalid answers and cannot be an ingredient")
        ingredients[part.name] = whole
    return ingredients
