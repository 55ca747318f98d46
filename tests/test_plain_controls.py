"""What plain things explain of a run, on one whose answers are known or can be read from its report."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pulse_hf.artifacts import ArtifactError, read_json
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.score_book import ScoreBook
from pulse_hf.evaluation.systems import systems
from pulse_hf.schema import CandidateSet, Decision, Item, Sequence
from pulse_hf.training.baselines import BaselineSettings, baselines

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import plain_controls  # noqa: E402

ITEMS = {name: Item(name, name, name) for name in "abcdef"}


def user(name: str, items: str) -> Sequence:
    return Sequence(name, tuple(items), (), (None,) * len(items), ("",) * len(items))


def study_of(sequences: list[Sequence], sets: list[CandidateSet]) -> Study:
    return Study(
        Path("nowhere"),
        {one.user_id: one for one in sequences},
        ITEMS,
        {one.decision_id: one for one in sets},
        {one.decision_id: one.decision for one in sets},
    )


def test_counts_over_all_but_the_last_know_the_validation_events_and_no_test_event():
    # Only the validation events tell that b is popular: over training events a leads, and the target b is never first.
    sequences = [user("u", "aabb"), user("v", "aabb"), user("w", "cbbe")]
    sets = [
        CandidateSet(f"{name}#3", "test", ("a", target), 1) for name, target in (("u", "b"), ("v", "b"), ("w", "e"))
    ]
    study = study_of(sequences, sets)
    more = replace(study, sequences={one.user_id: plain_controls._but_the_last(one) for one in sequences})
    assert dict(study.training_counts) == {"a": 4, "c": 1, "b": 1}
    assert dict(more.training_counts) == {"a": 4, "c": 1, "b": 4}
    assert [one.decision for one in sets] == [Decision(name, 3, "test") for name in "uvw"]
    found = plain_controls.later_events(study)["popularity"]
    assert found["training events"] == 0
    assert found["all but the last"] == pytest.approx(2 * 0.5 / 3)  # a and b tie for two of three


def test_own_later_choices_and_targets_that_nobody_chose_are_counted():
    sequences = [user("u", "abcd"), user("v", "abef")]
    sets = [
        CandidateSet("u#1", "train", ("b", "d"), 0),  # d is u's own test target
        CandidateSet("v#1", "train", ("b", "d"), 0),
        CandidateSet("u#2", "validation", ("a", "c"), 1),
        CandidateSet("v#2", "validation", ("f", "e"), 1),
        CandidateSet("u#3", "test", ("a", "d"), 1),
        CandidateSet("v#3", "test", ("a", "f"), 1),
    ]
    found = plain_controls.drawn_candidates(study_of(sequences, sets))
    assert found["own_later_choice_among_negatives"] == {"train": 1, "validation": 1, "test": 0}
    assert found["sets"] == {"train": 2, "validation": 2, "test": 2}
    assert found["targets_without_training_events"] == 2


def test_a_run_is_compared_from_its_kept_scores_and_refused_without_them(small_run: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with pytest.raises(ArtifactError, match="no validation scores of encoder-tuned"):
        plain_controls.popularity_controls(load_study(run), l2=1e-3, seed=0)
    baselines(run, BaselineSettings(systems=("encoder-tuned",)), seed=7)
    study = load_study(run)
    book = ScoreBook(run / "evaluate" / "scores", study)
    known = systems(book, l2=1e-3)
    for split in ("validation", "test"):
        book.rows(known["encoder-tuned"], split)
    found = plain_controls.popularity_controls(study, l2=1e-3, seed=0)
    report = read_json(run / "report.json")
    assert found["rows"]["pulse"]["hr@1"]["value"] == pytest.approx(report["systems"]["pulse"]["hr@1"]["value"])
    assert {row["baseline"] for row in found["comparisons"]} == {"encoder-tuned", *plain_controls.COUNTS}
    for row in found["comparisons"]:
        means = [found["rows"][row[side]][row["metric"]]["value"] for side in ("system", "baseline")]
        assert row["difference"] == pytest.approx(means[0] - means[1])
