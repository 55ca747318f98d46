"""What plain things explain of a finished run: popularity beside titles, later events, the draw of candidates.

    python scripts/plain_controls.py --run runs/gift-cards

Four questions that the report of a run leaves open, answered from its kept scores and counts in seconds:

* **Is what ``pulse`` has over ``encoder-tuned`` more than popularity?** The encoder and counts (log-popularity,
  item-kNN) are joined by the same stacker as every fusion, fitted on the same validation decisions, and compared with
  ``pulse``.
* **What is it worth to train on all but the last event**, as the paper does by its text? Counts can be made anew at
  once.
* **What does the Thought Space know beyond titles?** Its own validation, with the words of titles and without them.
* **What do the candidates tell?** How many targets have no training event (no popularity-sampled negative is such an
  item), and in how many sets somebody's own later choice stands among the negatives.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_hf.artifacts import ArtifactError, read_manifest, settings_of, write_json
from pulse_hf.evaluation.baselines import item_knn, popularity
from pulse_hf.evaluation.comparisons import compare, summarise
from pulse_hf.evaluation.fusion.joined import stacked_scores
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.evaluation.systems import systems
from pulse_hf.metrics import rank_metrics
from pulse_hf.schema import Sequence

COUNTS = {
    "encoder-tuned+popularity": ("encoder-tuned", "log-popularity"),
    "encoder-tuned+item-knn": ("encoder-tuned", "item-knn"),
    "encoder-tuned+both": ("encoder-tuned", "item-knn", "log-popularity"),
}
Metrics = Mapping[str, NDArray[np.float64]]


def popularity_controls(study: Study, *, l2: float, seed: int) -> dict[str, Any]:
    """``pulse`` beside the tuned encoder joined with counts.

    Args:
        study: A run with ``encoder-tuned`` and ``pulse``, evaluated.
        l2: The run's own setting of its stackers.
        seed: Of resamples and flips.

    Raises:
        ArtifactError: The run has kept no scores of a part.
    """
    book = ScoreBook(study.run / "evaluate" / "scores", study)
    known, decisions = systems(book, l2=l2), study.split("test")
    parts = dict.fromkeys(part for names in COUNTS.values() for part in names)
    _require_kept(book, [known[name] for name in (*parts, "pulse")])
    found = {name: book.rows(known[name], "test") for name in ("encoder-tuned", "pulse")}
    for name, names in COUNTS.items():
        joined = stacked_scores(study, decisions, book=book, parts=[known[one] for one in names], l2=l2)
        found[name] = list(joined.rows)
    metrics = {name: _metrics(study, name, rows) for name, rows in found.items()}
    pairs = [("pulse", name) for name in ("encoder-tuned", *COUNTS)]
    return {
        "rows": summarise(metrics, cold=study.cold(decisions), seed=seed),
        "comparisons": compare(metrics, pairs, seed=seed),
    }


def _require_kept(book: ScoreBook, wanted: list[System]) -> None:
    """A finished artefact is only read here."""
    for system in wanted:
        for split in ("validation", "test") if system.name != "pulse" else ("test",):
            if not (book.folder / split / f"{system.name}.json").exists():
                raise ArtifactError(
                    f"{book.folder} holds no {split} scores of {system.name}; evaluate a run that has it"
                )


def later_events(study: Study) -> dict[str, dict[str, float]]:
    """HR@1 of counts over the training events, and over all events but the test targets."""
    more = replace(study, sequences={user: _but_the_last(one) for user, one in study.sequences.items()})
    return {
        name: {
            trained: float(_metrics(study, name, list(score(given, study.split("test"))))["hr@1"].mean())
            for trained, given in (("training events", study), ("all but the last", more))
        }
        for name, score in (("popularity", popularity.scores), ("item-knn", item_knn.scores))
    }


def _but_the_last(sequence: Sequence) -> Sequence:
    """The same with its validation target among the training events."""
    tests = [place for place in range(len(sequence)) if sequence.split_of(place) == "test"]
    return replace(sequence, cut=(tests[0], -1, tests[0])) if tests else sequence


def drawn_candidates(study: Study) -> dict[str, Any]:
    """Counts of what the draw of candidates tells."""
    targets = study.target_items(study.split("test"))
    return {
        "targets_without_training_events": sum(study.training_counts[item] == 0 for item in targets),
        "own_later_choice_among_negatives": {
            split: sum(_holds_own(study, one.decision_id) for one in study.split(split))
            for split in ("train", "validation", "test")
        },
        "sets": {split: len(study.split(split)) for split in ("train", "validation", "test")},
    }


def _holds_own(study: Study, decision_id: str) -> bool:
    decision, chosen = study.decisions[decision_id], study.sets[decision_id]
    later = set(study.sequences[decision.user_id].item_ids[decision.position + 1 :])
    return bool(later & (set(chosen.item_ids) - {chosen.item_ids[chosen.target_index]}))


def _metrics(study: Study, name: str, rows: list[Any]) -> Metrics:
    decisions = study.split("test")
    ids = [one.decision_id for one in decisions]
    return rank_metrics(rows, study.targets(decisions), system=name, decision_ids=ids)


def main() -> None:
    """Print and keep the answers for a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of resamples and flips")
    parser.add_argument("--out", type=Path, help="hub_cards/reports/plain-controls-of-<run>.json by default")
    given = parser.parse_args()
    study = load_study(given.run)
    l2 = float(settings_of(given.run / "evaluate")["stacker_l2"])
    report = {
        "command": f"python scripts/plain_controls.py --run {given.run.name} --seed {given.seed}",
        "run": given.run.name,
        "users": len(study.split("test")),
        "popularity": popularity_controls(study, l2=l2, seed=given.seed),
        "later_events": later_events(study),
        "thought_space": read_manifest(given.run / "thought_space")["counts"]["validation"]["model"],
        "candidates": drawn_candidates(study),
    }
    path = given.out or Path(f"hub_cards/reports/plain-controls-of-{given.run.name}.json")
    write_json(path, report)
    for row in report["popularity"]["comparisons"]:
        if row["metric"] == "hr@1":
            print(f"pulse against {row['baseline']}: {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
    print(report["later_events"], report["candidates"])
    print(path)


if __name__ == "__main__":
    main()
