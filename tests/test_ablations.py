"""Retrained ablations: the arms differ in what they say they differ in, and in nothing else."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pulse_hf.artifacts import content_sha256, read_table
from pulse_hf.data.sequences import load_sequences
from pulse_hf.evaluation.our_scores import slm_scores
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.reasoning.examples import load_thoughts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import ablations  # noqa: E402


def arm_named(name):
    return next(arm for arm in ablations.ARMS if arm.name == name)


@pytest.fixture(scope="module")
def settings(small_run):
    return ablations.settings_of_study(small_run)


def test_an_arm_has_other_reasons_of_the_same_trees_and_shares_everything_before(
    small_run, settings, tmp_path, monkeypatch
):
    arm = arm_named("the base reason")
    monkeypatch.setattr(ablations, "ARMS", (arm,))
    report = ablations.ablations(
        small_run,
        ["b"],
        tmp_path,
        settings,
        users=12,
        encoder=settings.sequential.encoder,
    )
    folder = tmp_path / ablations.plain(arm.name)
    trees = read_table(small_run / "thoughts" / "trees.parquet").to_pylist()
    roots = {row["decision_id"]: row for row in trees if row["node"] == 0 and row["status"] == "ok"}
    own, other = load_thoughts(small_run), load_thoughts(folder)
    assert set(own) == set(other)
    assert all(other[key].reason == row["text"] for key, row in roots.items())
    assert any(own[key].reason != other[key].reason for key in own)
    kept = {one["name"]: one for one in report["arms"]}
    assert kept[arm.name]["changed"] == sum(own[key].reason != other[key].reason for key in own)
    for name in ("sequences", "sequential", "candidates", "rationales", "thought_space"):
        assert (folder / name).is_symlink()
        assert content_sha256(folder / name) == content_sha256(small_run / name)
    assert content_sha256(folder / "recommender") != content_sha256(small_run / "recommender")
    # The row of the run itself is what the run's own models say.
    study = load_study(small_run)
    some = study.split("test")[:12]
    hits = [
        int(np.argmax(row)) == target
        for row, target in zip(slm_scores(study, some, folder="pulse", thoughts=own), study.targets(some), strict=True)
    ]
    found = report["forms"]["pulse"]["systems"]
    assert found[ablations.OWN]["hr@1"]["value"] == pytest.approx(np.mean(hits))
    assert set(found) == {ablations.OWN, arm.name}
    assert set(report["forms"]["pulse-text"]["systems"]) == {*found, ablations.NONE}


def test_each_choice_is_a_leaf_of_the_decisions_own_tree(small_run, settings, tmp_path):
    trees = read_table(small_run / "thoughts" / "trees.parquet").to_pylist()
    leaves = {(row["decision_id"], row["node"]): row["text"] for row in trees if row["depth"] == 1}
    for name in ("an untuned encoder", "a random leaf", "the likeliest leaf"):
        choose = arm_named(name).choose
        ablations.rechosen(small_run, tmp_path / name, name, choose, settings.sequential.encoder, settings.seed)
        rows = read_table(tmp_path / name / "thoughts" / "thoughts.parquet").to_pylist()
        assert all(leaves[row["decision_id"], row["leaf"]] == row["reason"] for row in rows if row["reason"])
        assert sum(bool(row["reason"]) for row in rows) > len(rows) / 2


def test_an_arm_that_the_run_has_already_is_told_and_not_run(small_run, settings):
    assert ablations.applies(arm_named("all of the batch as negatives"), small_run, settings) == "the run has it"
    assert "no layer" in ablations.applies(arm_named("two towers"), small_run, settings)
    assert ablations.applies(arm_named("two layers tuned, two towers"), small_run, settings) == ""
    assert ablations.applies(arm_named("a random leaf"), small_run, settings) == ""


def test_a_changed_stage_and_all_after_it_are_made_anew(small_run, settings, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(ablations, "run_stage", lambda stage, run, changed: made.append((stage.word, changed)))
    ablations.arm_run(small_run, tmp_path / "two", arm_named("10 negatives"), settings, "any")
    assert [word for word, _ in made] == ["thought-space", "thoughts", "recommender"]
    assert made[0][1] == replace(settings, thought_space=replace(settings.thought_space, num_negatives=10))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "candidates",
        "rationales",
        "sequences",
        "sequential",
    ]


@pytest.mark.parametrize("name", ["reviews in place of rationales", "somebody else's rationales"])
def test_the_same_choices_are_explained_by_other_texts(small_run, settings, tmp_path, monkeypatch, name):
    made, real = [], ablations.run_stage

    def only_rationales(stage, run, changed):
        made.append(stage.word)
        if stage.word == "rationales":
            real(stage, run, changed)

    monkeypatch.setattr(ablations, "run_stage", only_rationales)
    ablations.arm_run(small_run, tmp_path, arm_named(name), settings, "any")
    assert made == ["rationales", "thought-space", "thoughts", "recommender"]
    before, after = (
        {(row["user_id"], row["position"]): row["text"] for row in rows if row["status"] == "ok"}
        for rows in (
            read_table(run / "rationales" / "rationales.parquet").to_pylist() for run in (small_run, tmp_path)
        )
    )
    assert set(after) <= set(before)
    assert len(after) > len(before) / 2
    written = {one.user_id: one.reviews for one in load_sequences(small_run)}
    if name.startswith("reviews"):
        assert all(
            " ".join(written[user][place].split()).startswith(text[:20]) for (user, place), text in after.items()
        )
    else:
        assert len(set(after.values()) - set(before.values())) < len(after) / 10  # but for a reading of its own
        assert sum(after[key] == before[key] for key in after) < len(after) / 10  # two may have been told alike


def test_no_choice_keeps_its_own_rationale(small_run):
    study = load_study(small_run)
    explained = [(one, f"reason {place}") for place, one in enumerate(study.split("test"))]
    dealt = ablations.somebody_elses(study, explained, 3)
    assert sorted(dealt) == sorted(text for _, text in explained)
    assert not any(text == own for text, (_, own) in zip(dealt, explained, strict=True))
    assert dealt == ablations.somebody_elses(study, explained, 3)
