"""HR@1 as candidates grow: one scoring holds all sizes, and the smallest is the run's own protocol."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

from pulse_hf.artifacts import read_json, read_table
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.metrics import rank_metrics
from pulse_hf.schema import CandidateSet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import protocols  # noqa: E402


@pytest.fixture(scope="module")
def measured(small_run, tmp_path_factory):
    study = load_study(small_run)
    decisions = study.split("test")[:10]
    given = argparse.Namespace(run=small_run, read=20, most=None, seed=0, work=tmp_path_factory.mktemp("protocols"))
    return study, decisions, protocols.measure(study, decisions, given)


def test_one_of_ten_is_the_runs_own_protocol_for_every_system(measured):
    study, decisions, found = measured
    assert found["uniform 1+9"].keys() == read_json(study.run / "report.json")["systems"].keys()
    for name, metrics in found["uniform 1+9"].items():
        table = read_table(study.run / "evaluate" / "scores" / "test" / f"{name}.parquet")
        rows = dict(zip(table["decision_id"].to_pylist(), table["scores"].to_pylist(), strict=True))
        own = [np.array(rows[one.decision_id]) for one in decisions]
        expected = rank_metrics(own, study.targets(decisions), system=name)
        assert metrics["mrr"] == pytest.approx(expected["mrr"]), name


def test_more_candidates_never_help(measured):
    _, _, found = measured
    for kind in ("uniform", "popularity"):
        few, many = found[f"{kind} 1+9"], found[f"{kind} 1+19"]
        assert all((many[name]["hr@1"] <= few[name]["hr@1"] + 1e-12).all() for name in few)
    whole = found["catalogue"]
    assert set(whole) == set(few)
    assert all((whole[name]["mrr"] <= found["uniform 1+19"][name]["mrr"] + 1e-12).all() for name in ("bm25", "fusion"))


def test_drawn_out_sets_hold_every_item_once_and_none_that_the_person_chose(measured):
    study, decisions, _ = measured
    for one, decision in zip(protocols.drawn_out(study, decisions, seed=0), decisions, strict=True):
        own = study.sets[decision.decision_id]
        assert one.item_ids[: len(own.item_ids)] == own.item_ids
        past = study.sequences[decision.user_id].before(decision.position + 1).item_ids
        target = past[-1]
        assert one.item_ids[one.target_index] == target
        assert len(set(one.item_ids)) == len(one.item_ids) == len(study.items) - len(set(past)) + 1
    for one in protocols.popular(study, decisions, 20, seed=0):
        assert len(set(one.item_ids)) == 20
        assert all(study.training_counts[item] > 0 for item in one.item_ids[1:])


def test_the_first_popular_negatives_are_as_popular_as_if_no_more_had_been_drawn(measured):
    """The popular ones are drawn early: a random part of a large draw would be less popular than a small draw."""
    study, _, _ = measured
    decisions = study.split("test")

    def popularity_of(size):
        sets = protocols.first(protocols.popular(study, decisions, size, seed=0), 4)
        return np.mean([study.training_counts[item] for one in sets for item in one.item_ids[1:]])

    assert popularity_of(40) == pytest.approx(popularity_of(4), rel=0.08)


def test_sets_that_are_cut_are_the_beginnings_of_whole_ones(measured, monkeypatch):
    study, decisions = measured[:2]
    monkeypatch.setattr(protocols, "AT_ONCE", 7)
    whole, cut = (protocols.drawn_out(study, decisions, seed=0, most=most) for most in (None, 20))
    assert len(decisions) > 7
    assert [one.item_ids for one in cut] == [one.item_ids[:20] for one in whole]
    assert [one.target_index for one in cut] == [one.target_index for one in whole]


def test_a_most_leaves_the_rest_as_it_is_and_the_catalogue_out(measured, tmp_path):
    study, decisions, found = measured
    given = argparse.Namespace(run=study.run, read=20, most=20, seed=0, work=tmp_path)
    few = protocols.measure(study, decisions, given)
    assert set(few) == {f"{kind} 1+{size}" for kind in ("uniform", "popularity") for size in (9, 19)}
    for name, metrics in few["uniform 1+19"].items():
        assert metrics["mrr"] == pytest.approx(found["uniform 1+19"][name]["mrr"]), name


def test_a_target_that_was_not_retrieved_is_a_miss():
    sets = [CandidateSet("u#2", "test", tuple("abcd"), 3), CandidateSet("v#2", "test", tuple("abcd"), 1)]
    near = protocols.retrieved(sets, [np.array([3.0, 2.0, 1.0, 0.0])] * 2, 2)
    assert [one.item_ids for one in near] == [("a", "b", "d"), ("a", "b")]
    rows = protocols.none_if_missed([np.array([0.1, 0.2, 0.9]), np.array([0.1, 0.2])], near, 2)
    found = protocols.metrics(rows, near, "any")
    assert found["hr@1"].tolist() == [0.0, 1.0]
    assert found["mrr"].tolist() == [0.0, 1.0]


def test_scores_of_another_evaluation_are_not_taken(small_run, tmp_path, monkeypatch):
    study = load_study(small_run)
    decisions = study.split("test")[:2]
    sets = [study.sets[one.decision_id] for one in decisions]
    own, again = (protocols.Leg(study, decisions, sets, tmp_path, l2=1e-3).folder for _ in range(2))
    monkeypatch.setattr(protocols, "content_sha256", lambda folder: "0" * 64 if folder.name == "evaluate" else None)
    assert own == again != protocols.Leg(study, decisions, sets, tmp_path, l2=1e-3).folder
