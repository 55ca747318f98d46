"""The whole road over splits by the calendar and by people: who is in no fit is nobody's neighbour, nothing leaks."""

from dataclasses import replace

import pytest
from small_road import small_settings

from pulse_hf.artifacts import read_json, read_manifest, read_table
from pulse_hf.data.sequences import load_sequences
from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.pipeline import run_road
from pulse_hf.recommender import Event, PulseRecommender
from pulse_hf.settings import RunSettings

SHARES = {"global-time": (0.25, 0.4), "people": (0.2, 0.3)}  # of events, of people


def settings(split: str = "global-time") -> RunSettings:
    small = small_settings()
    validation, test = SHARES[split]
    return replace(
        small,
        world=WorldSettings(num_users=60, items_per_kind=1),
        prepare=replace(small.prepare, split=split, validation_share=validation, test_share=test),
        sequential=replace(small.sequential, epochs=1),
        candidates=replace(small.candidates, max_test_users=10, max_validation_users=10, max_train_users=12),
        rationales=replace(small.rationales, engine="extractive"),
        # The audit rebuilds what the space was fitted on: titles of choices that have no rationale, too.
        thought_space=replace(small.thought_space, epochs=1, titles=True, all_titles=split == "people"),
        thoughts=replace(small.thoughts, engine="extractive"),
        baselines=replace(small.baselines, systems=("encoder-tuned",)),
    )


@pytest.fixture(scope="module", params=SHARES)
def run(request, tmp_path_factory):
    return run_road(tmp_path_factory.mktemp("runs") / request.param, settings(request.param))


def test_the_road_ends_with_a_report_whose_audit_passed(run):
    report = read_json(run / "report.json")
    assert report["audit"]["passed"]
    assert report["protocol"]["split"].startswith({"global-time": "global time", "people": "by people"}[run.name])
    assert {"pulse", "pulse-fused", "sasrec", "fusion", "encoder-tuned"} <= set(report["systems"])


def test_who_has_no_training_event_is_served_and_lends_nothing(run):
    unfitted = {one.user_id for one in load_sequences(run) if not one.num_train}
    assert unfitted  # or the test says nothing
    neighbours = read_table(run / "sequential" / "neighbours.parquet").to_pylist()
    assert unfitted & {row["user_id"] for row in neighbours}
    assert not unfitted & {user_id for row in neighbours for user_id in row["user_ids"]}
    assert {len(row["user_ids"]) for row in neighbours} == {settings().sequential.num_neighbours}


def test_the_control_without_reasons_takes_no_fewer_steps_than_the_space(run):
    space = read_json(run / "thought_space" / "metrics.json")["models"]["model"]
    control = read_manifest(run / "baselines")["counts"]["fits"]["encoder-tuned"]
    assert len(control["losses"]) >= len(space["losses"]) > 0


def test_a_recommender_of_such_a_run_comes_back(run, tmp_path):
    recommender = PulseRecommender.from_run(run)
    history = [Event(next(iter(recommender.parts.items.values())).title)]
    found = recommender.recommend(history, k=3)
    PulseRecommender.save_pretrained(recommender, tmp_path / "saved")
    again = PulseRecommender.from_pretrained(str(tmp_path / "saved")).recommend(history, k=3)
    assert [one.item_id for one in found] == [one.item_id for one in again]
    assert len(found) == 3
