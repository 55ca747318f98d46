"""Several seeds in one report: known answers on a finished run and a changed copy of it."""

import shutil

import pytest

from pulse_hf.artifacts import ArtifactError, read_json, read_table, write_json, write_table
from pulse_hf.evaluation.outcomes import load_outcome, outcome_of, save_outcome
from pulse_hf.evaluation.pooled import pooled_report
from pulse_hf.evaluation.protocol import load_study


@pytest.fixture
def runs(small_run, tmp_path):
    """The run, and a copy under another seed whose popularity row always knows the answer."""
    other = tmp_path / "other"
    shutil.copytree(small_run, other)
    report = read_json(other / "report.json")
    report["protocol"]["seed"] += 1
    write_json(other / "report.json", report)
    path = other / "evaluate" / "scores" / "test" / "popularity.parquet"
    sets = load_study(other).sets
    rows = read_table(path).to_pylist()
    for row in rows:
        target = sets[row["decision_id"]].target_index
        row["scores"] = [float(place == target) for place in range(len(row["scores"]))]
    write_table(path, "scores", rows[::-1])  # the order of rows must not matter
    return small_run, other


def pooled_of(runs):
    return pooled_report([outcome_of(run) for run in runs])


def test_the_mean_over_seeds_is_that_of_each_users_means(runs):
    single, pooled = read_json(runs[0] / "report.json"), pooled_of(runs)
    assert set(pooled["systems"]) == set(single["systems"])
    for name, row in pooled["systems"].items():
        before = single["systems"][name]["hr@1"]["value"]
        expected = (before + 1) / 2 if name == "popularity" else before
        assert row["hr@1"]["value"] == pytest.approx(expected), name
        assert row["slices"]["cold"]["users"] == single["systems"][name]["slices"]["cold"]["users"]
    assert pooled["by_seed"]["popularity"] == pytest.approx([single["systems"]["popularity"]["hr@1"]["value"]] * 2)
    gains = {(row["system"], row["baseline"], row["metric"]): row["difference"] for row in pooled["comparisons"]}
    expected = pooled["systems"]["pulse"]["hr@1"]["value"] - pooled["systems"]["popularity"]["hr@1"]["value"]
    assert gains["pulse", "popularity", "hr@1"] == pytest.approx(expected)
    warm = {(row["system"], row["baseline"]): row["difference"] for row in pooled["slice_comparisons"]["warm"]}
    ours, other = (pooled["systems"][name]["slices"]["warm"]["hr@1"]["value"] for name in ("pulse", "popularity"))
    assert warm["pulse", "popularity"] == pytest.approx(ours - other)
    assert pooled["stackers_by_seed"] == [single["stackers"]] * 2
    assert set(pooled["vote_weights_by_seed"][0]) == {"text", "reason", "behaviour"}
    assert pooled["protocol"]["seeds"] == [single["protocol"]["seed"], single["protocol"]["seed"] + 1]
    worth = {row["baseline"]: row["difference"] for row in single["worth_of_a_reason"]["comparisons"]}
    again = {row["baseline"]: row["difference"] for row in pooled["worth_of_a_reason"]["comparisons"]}
    assert again == pytest.approx(worth)


def test_what_only_one_run_has_is_that_runs_own(runs):
    path = runs[1] / "report.json"
    report = read_json(path)
    del report["systems"]["bm25"], report["worth_of_a_reason"]
    write_json(path, report)
    single, pooled = read_json(runs[0] / "report.json"), pooled_of(runs)
    assert pooled["systems"]["bm25"]["hr@1"]["value"] == pytest.approx(single["systems"]["bm25"]["hr@1"]["value"])
    assert pooled["systems"]["bm25"]["seeds"] == [single["protocol"]["seed"]]
    assert len(pooled["systems"]["pulse"]["seeds"]) == 2
    assert pooled["by_seed"]["bm25"] == [single["systems"]["bm25"]["hr@1"]["value"], None]
    assert pooled["worth_of_a_reason"]["runs"] == 1


def test_a_pair_is_compared_over_the_runs_that_have_both(runs):
    """The second run's popularity always knows the answer; against it, a row of the first run alone says nothing."""
    report = read_json(runs[1] / "report.json")
    del report["systems"]["pulse-fused"]
    write_json(runs[1] / "report.json", report)
    single, pooled = read_json(runs[0] / "report.json"), pooled_of(runs)

    def against_popularity(report):
        return {
            row["metric"]: row["difference"]
            for row in report["comparisons"]
            if (row["system"], row["baseline"]) == ("pulse-fused", "popularity")
        }

    assert against_popularity(pooled) == pytest.approx(against_popularity(single))
    assert pooled["systems"]["popularity"]["hr@1"]["value"] > single["systems"]["popularity"]["hr@1"]["value"]


def test_one_seed_twice_other_users_or_a_failed_audit_are_refused(runs):
    with pytest.raises(ArtifactError, match="each must have its own"):
        pooled_of([runs[0], runs[0]])
    path = runs[1] / "report.json"
    report = read_json(path)
    write_json(path, report | {"protocol": report["protocol"] | {"negatives": 99}})
    with pytest.raises(ArtifactError, match="protocol.negatives is 99"):
        pooled_of(runs)
    write_json(path, report | {"audit": {"passed": False, "checks": []}})
    with pytest.raises(ArtifactError, match="audit did not pass"):
        pooled_of(runs)
    write_json(path, report)
    candidates = runs[1] / "candidates" / "candidates.parquet"
    rows = read_table(candidates).to_pylist()
    changed = next(row for row in rows if row["split"] == "test")
    changed["target_index"] = (changed["target_index"] + 1) % len(changed["item_ids"])
    write_table(candidates, "candidates", rows)
    with pytest.raises(ArtifactError, match="what they chose"):
        pooled_of(runs)


def test_kept_outcomes_give_the_same_report_and_tell_nothing_of_people(runs, tmp_path):
    outcomes = [outcome_of(run, "settings") for run in runs]
    for place, outcome in enumerate(outcomes):
        save_outcome(tmp_path / f"s{place}", outcome)
    kept = [load_outcome(tmp_path / f"s{place}") for place in (0, 1)]
    assert pooled_report(kept) == pooled_report(outcomes)
    assert (kept[0].settings_sha256, kept[0].seconds) == ("settings", outcomes[0].seconds)
    assert kept[0].seconds > read_json(runs[0] / "report.json")["stages"]["rationales"]["seconds"]
    study = load_study(runs[0])
    told = (tmp_path / "s0" / "outcome.json").read_text() + str(
        read_table(tmp_path / "s0" / "places.parquet").to_pydict()
    )
    assert not [one for one in (*study.sequences, *study.items) if one in told]


def test_places_of_other_users_are_refused(runs, tmp_path):
    save_outcome(tmp_path / "s", outcome_of(runs[0]))
    rows = read_table(tmp_path / "s" / "places.parquet").to_pylist()
    write_table(tmp_path / "s" / "places.parquet", "places", [{**rows[0], "above": rows[0]["above"][1:]}, *rows[2:]])
    with pytest.raises(
        ArtifactError, match=f"without places of all of them: {rows[0]['scores']}, {rows[1]['scores']}"
    ):
        load_outcome(tmp_path / "s")
