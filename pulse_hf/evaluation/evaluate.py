"""The stage ``evaluate``: every system on the same candidates, the worth of a reason, the leak audit, the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import (
    MANIFEST,
    ArtifactError,
    Fingerprint,
    build,
    copy_file,
    package_versions,
    parent_sha256,
    process,
    read_manifest,
    settings_in,
    settings_of,
    sha256_of_file,
    write_json,
    write_text,
)
from pulse_hf.data.world.stage import is_synthetic
from pulse_hf.evaluation.cost import STAGES, cost_of, cost_of_stages
from pulse_hf.ranges import above, at_least, some_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pulse_hf.evaluation.protocol import Study
    from pulse_hf.evaluation.score_book import ScoreBook, System
    from pulse_hf.schema import Decision

    Metrics = dict[str, dict[str, NDArray[np.float64]]]

logger = logging.getLogger(__name__)

SYSTEMS = (
    "random",
    "popularity",
    "repeat",
    "item-knn",
    "title-similarity",
    "bm25",
    "bm25-reviews",
    "encoder-tuned",
    "sasrec-bce",
    "sasrec-gbce",
    "duorec",
    "ec4srec",
    "sasrec",
    "sasrec+text",
    "morec",
    "ctrl",
    "encoder-tuned+sasrec",
    "gated",
    "fusion",
    "a-llmrec",
    "a-llmrec+reason",
    "slm+sft",
    "fusion+slm+sft",
    "thought-space",
    "pulse-text",
    "pulse",
    "pulse-fused",
)

_SPLITS = {
    "leave-one-out": "leave-one-out: last event test, second last validation, earlier ones training",
    "global-time": "global time: first event of the test period, of the validation period, earlier ones training",
    "people": "by people: last events of people who are in no training data; everything of the others trains",
}

__all__ = ["SYSTEMS", "EvaluateSettings", "evaluate"]


@dataclass(frozen=True)
class EvaluateSettings:
    """What is compared and how it is checked (all ours; the paper reports HR@1 without intervals).

    Args:
        systems: Rows of the report, in order; scorers that were not tuned have none.
        worth_of_a_reason: Score ``pulse`` also without a reason, with another user's, with its words shuffled and with
            a random leaf's.
        ablations: And with the base reason, the likeliest leaf and the one an untuned encoder prefers (paper §5.5).
        stacker_l2: Pull to zero of the standardised weights of ``fusion`` and ``pulse-fused``.
        audit_users: Test users whose neighbours and thoughts the audit makes again with and without swapped targets.
    """

    systems: tuple[str, ...] = SYSTEMS
    worth_of_a_reason: bool = True
    ablations: bool = False
    stacker_l2: float = 1e-3
    audit_users: int = 8

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        some_of(self, "systems", SYSTEMS)
        above(self, 0, "stacker_l2")
        at_least(self, 1, "audit_users")
        if not self.systems:
            raise ValueError("systems is empty, expected at least one row.")


def evaluate(run: Path, settings: EvaluateSettings, *, seed: int, force: bool = False) -> Path:
    """Score, compare, audit and report.

    Writes ``evaluate/`` (scores of every system, ``report.json``, ``report.md``, ``figures/``) and copies the
    report to the run's root. A failed audit leaves its report beside the run's as ``report.failed.json``
    and ``report.failed.md``, and no other.

    Args:
        run: A run folder with all earlier stages.
        settings: What is compared.
        seed: Seed of resamples, flips and swapped reasons.
        force: Build anew although settings or inputs changed.

    Returns:
        The folder ``evaluate/``.

    Raises:
        ArtifactError: A stage is missing or was made from another one than is here, or the leak audit failed.
        ValueError: A system gives a score that is not finite.
    """
    folder = run / "evaluate"
    fingerprint = Fingerprint("evaluate", asdict(settings), seed, _parents(run))
    build(folder, fingerprint, lambda work: _make(run, work, settings, seed), force=force)
    _publish(run, folder)
    return folder


def _parents(run: Path) -> dict[str, str]:
    parents = {name: parent_sha256(run / folder) for name, folder in STAGES.items() if (run / folder).exists()}
    truth = {"world/truth.json": sha256_of_file(run / "world" / "truth.json")} if is_synthetic(run) else {}
    return parents | truth


def _make(run: Path, work: Path, settings: EvaluateSettings, seed: int) -> dict[str, Any]:
    from pulse_hf.evaluation.figures import draw_figures
    from pulse_hf.evaluation.leakage import audit, require_one_run
    from pulse_hf.evaluation.report import render

    require_one_run(run)
    report = _measure(run, work, replace(settings, systems=_tuned(run, settings.systems)), seed)
    report["audit"] = audit(run, users=settings.audit_users, seed=seed)
    if not report["audit"]["passed"]:
        write_json(run / "report.failed.json", report)
        write_text(run / "report.failed.md", render(report))
        for stale in ("report.json", "report.md"):
            (run / stale).unlink(missing_ok=True)
        failed = [f"{check['name']}: {check['detail']}" for check in report["audit"]["checks"] if not check["passed"]]
        raise ArtifactError(f"The leak audit failed, see {run / 'report.failed.md'}:\n  " + "\n  ".join(failed))
    write_json(work / "report.json", report)
    write_text(work / "report.md", render(report))
    draw_figures(report, work / "figures")
    return {"rows": report["protocol"]["users"], "systems": len(report["systems"])}


def _tuned(run: Path, systems: Sequence[str]) -> tuple[str, ...]:
    """The systems without those that this run's stages were told not to fit."""
    from pulse_hf.evaluation.our_scores import fitted_with_titles
    from pulse_hf.evaluation.systems import has_reviews
    from pulse_hf.reasoning.examples import SCORERS
    from pulse_hf.stages import BASELINES

    absent: set[str] = set()
    # Without the stage itself scoring such a row will tell that it is missing.
    if (run / "recommender" / MANIFEST).exists():
        absent |= set(SCORERS) - set(_fitted(run, "recommender"))
        absent |= {"fusion+slm+sft"} & {f"fusion+{name}" for name in absent}
    absent |= set(BASELINES) - set(_fitted(run, "baselines") if (run / "baselines" / MANIFEST).exists() else ())
    if not fitted_with_titles(run):
        absent.add("thought-space")
    if not has_reviews(run):
        absent.add("bm25-reviews")
    if "encoder-tuned" in absent:
        absent |= {"encoder-tuned+sasrec", "gated"}
    return tuple(name for name in systems if name not in absent)


def _fitted(run: Path, stage: str) -> list[str]:
    return list(settings_of(run / stage)["systems"])


def _publish(run: Path, folder: Path) -> None:
    """Bring the report to the run's root; what is there already is not written again."""
    if process() > 0:
        return
    for name in ("report.json", "report.md"):
        copy_file(folder / name, run / name)
        (run / name.replace("report", "report.failed")).unlink(missing_ok=True)
    drawn = sorted((folder / "figures").glob("*.png"))
    for picture in drawn:
        copy_file(picture, run / "figures" / picture.name)
    for stale in {path.name for path in (run / "figures").glob("*.png")} - {path.name for path in drawn}:
        (run / "figures" / stale).unlink()


def _measure(run: Path, work: Path, settings: EvaluateSettings, seed: int) -> dict[str, Any]:
    from pulse_hf.evaluation.comparisons import compare, compare_slices, compared_pairs, summarise
    from pulse_hf.evaluation.protocol import load_study
    from pulse_hf.evaluation.score_book import ScoreBook
    from pulse_hf.evaluation.systems import systems

    study = load_study(run)
    decisions = study.split("test")
    _check_decisions(run, decisions)
    book = ScoreBook(work / "scores", study)
    known = systems(book, l2=settings.stacker_l2)
    for word in dict.fromkeys(word for name in settings.systems for word in known[name].stages):
        read_manifest(run / STAGES[word])  # a stage that is missing is told before anything is scored
    _score_parts(book, known, settings)
    metrics = {
        name: _metrics(study, decisions, known[name].name, book.rows(known[name], "test")) for name in settings.systems
    }
    cold, pairs = study.cold(decisions), compared_pairs(settings.systems)
    summary = summarise(metrics, cold=cold, seed=seed)
    measured = [(metrics[ours], metrics[other]) for ours, other in pairs]
    fitted = {name: book.beside(known[name], "test")["stacker"] for name in settings.systems if known[name].parts}
    report = {
        "protocol": _protocol(run, study, decisions, seed),
        "systems": {name: {**summary[name], "cost": cost_of(run, book, known, name)} for name in settings.systems},
        "comparisons": compare(metrics, pairs, seed=seed),
        "slice_comparisons": compare_slices(measured, pairs, cold=cold, seed=seed),
        "stages": cost_of_stages(run),
        "versions": package_versions(),
        "stackers": {name: stacker for name, stacker in fitted.items() if stacker},
        "vote_weights": _vote_weights(run) if "pulse" in settings.systems else {},
    }
    return report | _extras(run, study, decisions, book, metrics, settings=settings, seed=seed)


def _vote_weights(run: Path) -> dict[str, float]:
    """What the language model's logit and each vote count in ``pulse``, as fitted on validation."""
    fits = read_manifest(run / "recommender")["counts"]["systems"]
    return dict(fits.get("pulse", {}).get("weights", {}))


def _check_decisions(run: Path, decisions: Sequence[Decision]) -> None:
    if not decisions:
        raise ArtifactError(f"{run / 'candidates'} holds no test decisions; users need at least 3 events")
    if len({decision.user_id for decision in decisions}) != len(decisions):
        raise ArtifactError(f"{run / 'candidates'} holds several test decisions of one user; intervals are over users")


def _score_parts(book: ScoreBook, known: Mapping[str, System], settings: EvaluateSettings) -> None:
    """Parts of the fused systems first, so that a fused row's own time is not theirs."""
    parts = {part: None for name in settings.systems for part in known[name].parts}
    for part in parts:
        for split in ("validation", "test"):
            logger.info("scoring %s on %s", part, split)
            book.rows(known[part], split)


def _metrics(
    study: Study, decisions: Sequence[Decision], name: str, rows: Sequence[Any]
) -> dict[str, NDArray[np.float64]]:
    from pulse_hf.metrics import rank_metrics

    return rank_metrics(rows, study.targets(decisions), system=name, decision_ids=[d.decision_id for d in decisions])


def _protocol(run: Path, study: Study, decisions: Sequence[Decision], seed: int) -> dict[str, Any]:
    candidates = read_manifest(run / "candidates")
    settings = {key: json.loads(value) for key, value in candidates["fingerprint"].items()}
    pairs = zip(study.target_items(decisions), study.histories(decisions), strict=True)
    repeats = sum(item in history.item_ids for item, history in pairs)
    return {
        "split": _SPLITS[_split(read_manifest(run / "sequences"))],
        "negatives": max(len(row) for row in study.candidates(decisions)) - 1,
        "sampling": settings.get("settings.sampling", "uniform"),
        "seed": seed,
        "candidates_sha256": candidates["sha256"],
        "users": len(decisions),
        "refit": False,
        "synthetic": is_synthetic(run),
        "repeats": repeats / len(decisions),
    }


def _split(sequences: Mapping[str, Any]) -> str:
    """How a run's sequences were split; of pulled ones it is among the settings that made them."""
    made = settings_in(sequences["fingerprint"]).get("split", "leave-one-out")
    return str(sequences["counts"].get("split", {}).get("by", made))


def _extras(
    run: Path,
    study: Study,
    decisions: Sequence[Decision],
    book: ScoreBook,
    metrics: Metrics,
    *,
    settings: EvaluateSettings,
    seed: int,
) -> dict[str, Any]:
    from pulse_hf.evaluation.comparisons import summarise
    from pulse_hf.evaluation.faithfulness import extractive_reasons, faithfulness, measured_oracles
    from pulse_hf.evaluation.train_vs_test import train_vs_test
    from pulse_hf.reasoning.examples import load_thoughts

    extras: dict[str, Any] = {}
    if "pulse" in settings.systems:
        thoughts = load_thoughts(run)
        extras["train_vs_test"] = train_vs_test(study, thoughts, seed=seed)
        extras["thought_space"] = read_manifest(run / "thought_space")["counts"]["validation"]["model"]
        if settings.worth_of_a_reason:
            extras["worth_of_a_reason"] = _worth(
                study, decisions, book, metrics["pulse"], seed, ablations=settings.ablations
            )
        if is_synthetic(run):
            reasons = {d.decision_id: thoughts[d.decision_id].reason or "" for d in decisions}
            extras["faithfulness"] = faithfulness(run, decisions, reasons, seed=seed)
            floor = faithfulness(run, decisions, extractive_reasons(run, decisions), seed=seed)
            extras["faithfulness"]["extractive"] = floor
    oracles = measured_oracles(run, study, decisions)
    if oracles:
        measured = {name: _metrics(study, decisions, name, rows) for name, rows in oracles.items()}
        extras["oracles"] = summarise(measured, cold=study.cold(decisions), seed=seed)
    return extras


def _worth(
    study: Study,
    decisions: Sequence[Decision],
    book: ScoreBook,
    own: dict[str, NDArray[np.float64]],
    seed: int,
    *,
    ablations: bool,
) -> dict[str, Any]:
    from pulse_hf.evaluation.comparisons import compare, summarise
    from pulse_hf.evaluation.reasons import OWN, variants

    measured = {OWN: own}
    for name, system in variants(study, decisions, seed, ablations=ablations).items():
        logger.info("scoring %s", system.name)
        measured[name] = _metrics(study, decisions, system.name, book.rows(system, "test"))
    pairs = [(OWN, name) for name in measured if name != OWN]
    return {
        "variants": summarise(measured, cold=study.cold(decisions), seed=seed),
        "comparisons": compare(measured, pairs, seed=seed),
    }
