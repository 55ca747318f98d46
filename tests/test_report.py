"""The report: fixed keys, slices, comparisons with Holm, honest captions, figures with the same bytes."""

import copy

import numpy as np
import pytest

from pulse_hf import artifacts
from pulse_hf.evaluation import leakage
from pulse_hf.evaluation.baselines import item_knn
from pulse_hf.evaluation.comparisons import (
    against_the_strongest,
    compare,
    compare_slices,
    compared_pairs,
    summarise,
    what_thoughts_add,
)
from pulse_hf.evaluation.cost import rows_kept
from pulse_hf.evaluation.evaluate import EvaluateSettings, evaluate
from pulse_hf.evaluation.faithfulness import faithfulness, names_one
from pulse_hf.evaluation.figures import draw_figures
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.evaluation.reasons import derangement
from pulse_hf.evaluation.report import render
from pulse_hf.metrics import METRICS, rank_metrics
from pulse_hf.retrieval.candidates import CandidateSettings, candidates
from pulse_hf.schema import Item, Sequence

USERS = 60


def scored(strength, seed, system="s"):
    """Metrics of a scorer that sees the target through noise; without noise it is an oracle."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(USERS, 10))
    rows[:, 4] += strength
    return rank_metrics(list(rows), [4] * USERS, system=system)


@pytest.fixture(scope="module")
def metrics():
    chance = rank_metrics([np.zeros(10)] * USERS, [4] * USERS)
    return {"random": chance, "sasrec": scored(0.5, 1), "pulse": scored(1.5, 2), "oracle": scored(100, 3)}


@pytest.fixture(scope="module")
def report(metrics):
    cold = np.arange(USERS) < 20
    systems = {
        name: {**row, "cost": {"tokens": 1234, "seconds": 5.0, "bytes": 6}}
        for name, row in summarise(metrics, cold=cold, seed=0).items()
    }
    return {
        "protocol": {
            "split": "leave-one-out",
            "negatives": 9,
            "sampling": "uniform",
            "seed": 0,
            "candidates_sha256": "ab" * 32,
            "users": USERS,
            "refit": False,
            "synthetic": True,
            "repeats": 0.17,
        },
        "systems": systems,
        "comparisons": compare(metrics, [("pulse", "random"), ("pulse", "sasrec")], seed=0),
        "audit": {"passed": True, "checks": [{"name": "swap", "passed": True, "detail": "a | b"}]},
        "stages": {"prepare": {"seconds": 1.5, "rows": 9}},
        "versions": {"torch": "2"},
        "worth_of_a_reason": {
            "variants": summarise({"own": metrics["pulse"], "none": metrics["sasrec"]}, cold=cold, seed=0),
            "comparisons": compare({"own": metrics["pulse"], "none": metrics["sasrec"]}, [("own", "none")], seed=0),
        },
    }


def test_every_system_has_the_fixed_keys_with_intervals(report):
    for row in report["systems"].values():
        assert set(METRICS) | {"slices", "cost"} == set(row)
        assert set(row["slices"]) == {"cold", "warm"}
        for metric in METRICS:
            assert set(row[metric]) == {"value", "low", "high"}
            assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]


def test_an_oracle_gets_one_and_guessing_gets_a_tenth(report):
    oracle, chance = report["systems"]["oracle"], report["systems"]["random"]
    assert [oracle[metric]["value"] for metric in METRICS] == [1.0] * 5
    assert chance["hr@1"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})


def test_slices_are_means_over_their_members_and_join_to_the_whole(report, metrics):
    row = report["systems"]["pulse"]
    cold, warm = row["slices"]["cold"], row["slices"]["warm"]
    assert cold["users"] + warm["users"] == USERS
    assert cold["hr@1"]["value"] == pytest.approx(metrics["pulse"]["hr@1"][:20].mean())
    joined = (20 * cold["mrr"]["value"] + 40 * warm["mrr"]["value"]) / USERS
    assert joined == pytest.approx(row["mrr"]["value"])


def test_an_empty_slice_has_no_number(metrics):
    found = summarise(metrics, cold=np.zeros(USERS, dtype=bool), seed=0)
    assert found["pulse"]["slices"]["cold"]["hr@1"] == {"value": None, "low": None, "high": None}


def test_comparisons_have_the_fixed_keys_and_holm_over_one_metric(report):
    rows = [row for row in report["comparisons"] if row["metric"] == "hr@1"]
    fixed = {"system", "baseline", "metric", "difference", "low", "high", "p"}
    assert all(fixed <= set(row) for row in report["comparisons"])
    assert [(row["system"], row["baseline"]) for row in rows] == [("pulse", "random"), ("pulse", "sasrec")]
    smaller, larger = sorted(row["p"] for row in rows)
    assert sorted(row["p_holm"] for row in rows) == pytest.approx(sorted([2 * smaller, max(2 * smaller, larger)]))


def test_differences_are_differences_of_the_values(report):
    for row in report["comparisons"]:
        first, second = (report["systems"][row[side]][row["metric"]]["value"] for side in ("system", "baseline"))
        assert row["difference"] == pytest.approx(first - second)


def test_a_slice_is_tested_among_its_own_users_and_against_its_own_strongest(report, metrics):
    cold, pairs = np.arange(USERS) < 20, [("pulse", "random"), ("pulse", "sasrec")]
    reversed_cold = {name: {metric: row[metric].copy() for metric in METRICS} for name, row in metrics.items()}
    reversed_cold["random"]["hr@1"][:20] = 1.0  # here, and here alone, guessing is the strongest
    measured = [(reversed_cold[ours], reversed_cold[other]) for ours, other in pairs]
    found = compare_slices(measured, pairs, cold=cold, seed=0)
    changed = {
        **report,
        "systems": {
            name: {**row, "cost": report["systems"][name]["cost"]}
            for name, row in summarise(reversed_cold, cold=cold, seed=0).items()
            if name != "oracle"
        },
        "slice_comparisons": found,
    }
    (cold_row,), (warm_row,) = (against_the_strongest(changed, part) for part in ("cold", "warm"))
    assert (cold_row["baseline"], warm_row["baseline"]) == ("random", "sasrec")
    assert cold_row["difference"] == pytest.approx(metrics["pulse"]["hr@1"][:20].mean() - 1)
    expected = metrics["pulse"]["hr@1"][20:].mean() - metrics["sasrec"]["hr@1"][20:].mean()
    assert warm_row["difference"] == pytest.approx(expected)
    assert sorted(row["p_holm"] / row["p"] for row in found["warm"])[-1] <= 2  # two pairs, a family of their own
    assert "Cold targets, against the strongest row there" in render(changed)


def test_what_thoughts_add_has_one_corrected_p_also_in_reports_that_had_two():
    row = {"metric": "hr@1", "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.01}
    fused = {**row, "system": "pulse-fused", "baseline": "fusion+slm+sft"}
    text = {**row, "system": "pulse-text", "baseline": "slm+sft", "p_holm": 0.02}
    older = {"comparisons": [{**fused, "p_holm": 0.2}], "controls": [{**fused, "p_holm": 0.02}, text]}
    assert what_thoughts_add(older) == [text, {**fused, "p_holm": 0.2}]
    assert what_thoughts_add({"comparisons": [{**fused, "p_holm": 0.2}]}) == [{**fused, "p_holm": 0.2}]
    systems = ["slm+sft", "fusion+slm+sft", "pulse", "pulse-text", "pulse-fused"]
    pairs = compared_pairs(systems)
    assert len(set(pairs)) == len(pairs) == 4 + 3 + 1
    assert ("pulse-text", "slm+sft") in pairs


def test_a_slice_without_users_is_not_tested(metrics):
    pairs = [("pulse", "sasrec")]
    found = compare_slices([(metrics["pulse"], metrics["sasrec"])], pairs, cold=np.zeros(USERS, dtype=bool), seed=0)
    assert found["cold"] == []
    assert len(found["warm"]) == 1


def test_no_pairs_no_comparisons(metrics):
    assert compare(metrics, [], seed=0) == []


def test_captions_say_synthetic_and_only_then(report):
    text = render(report)
    assert "These numbers are synthetic" in text
    assert "(real data)" not in text
    real = copy.deepcopy(report)
    real["protocol"]["synthetic"] = False
    assert "synthetic" not in render(real)


def test_a_failed_audit_is_the_first_thing_said(report):
    failed = copy.deepcopy(report)
    failed["audit"] = {"passed": False, "checks": [{"name": "swap", "passed": False, "detail": "d"}]}
    assert render(failed).index("FAILED") < render(failed).index("## Systems")


def test_every_number_shown_is_in_the_report_and_tables_are_whole(report):
    text = render(report)
    for name, row in report["systems"].items():
        assert f"| {name} | {row['hr@1']['value']:.3f} [" in text
    assert "a \\| b" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert sum(map(len, tables)) == sum(line.startswith("|") for line in text.splitlines()) > 0
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_figures_are_drawn_from_the_report_with_the_same_bytes(report, tmp_path):
    first = draw_figures(report, tmp_path / "a")
    second = draw_figures(report, tmp_path / "b")
    assert [path.name for path in first] == ["hr_at_1.png", "worth_of_a_reason.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    changed = copy.deepcopy(report)
    changed["systems"]["pulse"]["hr@1"] = {"value": 0.9, "low": 0.8, "high": 0.95}
    assert draw_figures(changed, tmp_path / "c")[0].read_bytes() != first[0].read_bytes()


def test_nobody_keeps_his_own_reason():
    for size in (2, 3, 50):
        swapped = derangement(size, seed=7)
        assert sorted(swapped) == list(range(size))
        assert all(place != other for place, other in enumerate(swapped))
    assert derangement(50, seed=7) == derangement(50, seed=7) != derangement(50, seed=8)
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, seed=0)


def test_a_phrase_counts_as_whole_words_only():
    assert names_one("Wants things that last, for decades!", ["things that last for decades"])
    assert not names_one("The everlasting quest", ["lasting"])
    assert not names_one("", ["quiet"])


SIMPLE = EvaluateSettings(systems=("random", "popularity", "repeat", "item-knn"), worth_of_a_reason=False)


@pytest.fixture
def run(tmp_path):
    """A run that ends with its candidates: enough for the systems that fit nothing."""
    generator = np.random.default_rng(0)
    catalogue = [f"i{number:02d}" for number in range(30)]
    users = []
    for number in range(40):
        own = tuple(generator.choice(catalogue[: 15 + number % 2 * 15], 5, replace=False).tolist())
        users.append(Sequence(f"u{number}", own, tuple(range(5)), (None,) * 5, ("",) * 5))

    def make(work):
        artifacts.write_table(work / "sequences.parquet", "sequences", users)
        artifacts.write_table(work / "items.parquet", "items", [Item(name, name, name) for name in catalogue])
        return {"rows": 200}

    artifacts.build(tmp_path / "sequences", artifacts.Fingerprint("prepare", {}, 0), make)
    candidates(tmp_path, CandidateSettings(num_negatives=9), seed=0)
    return tmp_path


def test_the_stage_writes_a_report_with_the_fixed_keys(run):
    evaluate(run, SIMPLE, seed=0)
    report = artifacts.read_json(run / "report.json")
    assert {"protocol", "systems", "comparisons", "audit", "stages", "versions"} <= set(report)
    protocol = {"split", "negatives", "sampling", "seed", "candidates_sha256", "users", "refit"}
    assert protocol <= set(report["protocol"])
    assert (report["protocol"]["negatives"], report["protocol"]["users"]) == (9, 40)
    assert report["protocol"]["candidates_sha256"] == artifacts.content_sha256(run / "candidates")
    assert list(report["systems"]) == sorted(SIMPLE.systems)
    for row in report["systems"].values():
        assert set(row) == {*METRICS, "slices", "cost"}
        assert set(row["cost"]) == {"tokens", "seconds", "seconds_per_user", "bytes"}
    assert report["audit"]["passed"]
    assert set(report["stages"]) == {"prepare", "candidates"}
    assert all(set(stage) == {"seconds", "rows"} for stage in report["stages"].values())
    assert (run / "report.md").read_text() == render(report)
    assert (run / "figures" / "hr_at_1.png").exists()


def test_the_metrics_follow_from_the_saved_scores_and_the_candidates(run):
    folder = evaluate(run, SIMPLE, seed=0)
    report = artifacts.read_json(run / "report.json")
    targets = {
        row["decision_id"]: row for row in artifacts.read_table(run / "candidates/candidates.parquet").to_pylist()
    }
    for name in SIMPLE.systems:
        rows = artifacts.read_table(folder / "scores" / "test" / f"{name}.parquet").to_pylist()
        assert all(row["item_ids"] == targets[row["decision_id"]]["item_ids"] for row in rows)
        places = [targets[row["decision_id"]]["target_index"] for row in rows]
        again = rank_metrics([np.array(row["scores"]) for row in rows], places)
        for metric in METRICS:
            assert report["systems"][name][metric]["value"] == pytest.approx(again[metric].mean(), abs=1e-12)


def test_a_second_run_changes_nothing_and_other_settings_are_refused(run):
    evaluate(run, SIMPLE, seed=0)
    before = (run / "report.json").read_bytes()
    evaluate(run, SIMPLE, seed=0)
    assert (run / "report.json").read_bytes() == before
    with pytest.raises(artifacts.ArtifactError, match="settings.systems"):
        evaluate(run, EvaluateSettings(systems=("random",)), seed=0)


def test_an_interrupted_evaluation_goes_on_with_the_scores_it_has(run, monkeypatch):
    def broken(study, decisions):
        raise KeyboardInterrupt

    with monkeypatch.context() as planted:
        planted.setattr(item_knn, "scores", broken)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, SIMPLE, seed=0)
    kept = run / "evaluate.partial" / "scores" / "test" / "popularity.parquet"
    stamp = kept.stat().st_mtime_ns
    folder = evaluate(run, SIMPLE, seed=0)
    assert (folder / "scores" / "test" / "popularity.parquet").stat().st_mtime_ns == stamp


def test_a_failed_audit_fails_the_stage_and_leaves_its_report_to_be_read(run, monkeypatch):
    evaluate(run, SIMPLE, seed=0)
    found = {"passed": False, "checks": [{"name": "planted", "passed": False, "detail": "a leak"}]}
    monkeypatch.setattr(leakage, "audit", lambda run, users, seed: found)
    with pytest.raises(artifacts.ArtifactError, match="planted: a leak"):
        evaluate(run, SIMPLE, seed=1, force=True)
    assert artifacts.read_json(run / "report.failed.json")["audit"] == found
    assert "FAILED" in (run / "report.failed.md").read_text()
    assert not (run / "report.json").exists()
    monkeypatch.undo()
    evaluate(run, SIMPLE, seed=1, force=True)
    assert (run / "report.json").exists()
    assert not (run / "report.failed.json").exists()


def test_unknown_systems_are_named(run):
    with pytest.raises(ValueError, match="found \\['magic'\\], expected some of random"):
        evaluate(run, EvaluateSettings(systems=("random", "magic")), seed=0)


def test_faithfulness_counts_the_users_own_motive_and_a_strangers(run, monkeypatch):
    names = ["quiet", "cheap"]
    study = load_study(run)
    motives = {user: [int(user[1:]) % 2, 1 - int(user[1:]) % 2] for user in study.sequences}
    truth = {
        "motives": {"cheap": ["low price"], "quiet": ["peace and quiet", "silence"]},  # JSON sorts its keys
        "motive_names": names,
        "held_out_motives": ["quiet"],
        "users": motives,
    }
    monkeypatch.setattr("pulse_hf.evaluation.faithfulness.load_truth", lambda run: truth)
    decisions = study.split("test")
    words = {"quiet": "She wants Silence.", "cheap": "A low  price matters."}
    right = {one.decision_id: words[names[motives[one.user_id][0]]] for one in decisions}
    found = faithfulness(run, decisions, right, seed=0)
    assert found["own"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert 0.3 < found["other"]["value"] < 0.7
    only_quiet = {**right, **{one.decision_id: "" for one in decisions if motives[one.user_id][0] == 1}}
    partly = faithfulness(run, decisions, only_quiet, seed=0)
    assert partly["held_out"]["own"]["value"] == 1.0 > partly["own"]["value"]
    assert partly["held_out"]["decisions"] == sum(motives[one.user_id][0] == 0 for one in decisions)
    assert found["ratio"] == pytest.approx(1 / found["other"]["value"])
    wrong = {one.decision_id: words[names[motives[one.user_id][1]]] for one in decisions}
    assert faithfulness(run, decisions, wrong, seed=0)["own"]["value"] == 0.0
    silent = dict.fromkeys(right, "")
    assert faithfulness(run, decisions, silent, seed=0)["ratio"] is None


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        ({"result": {"events": 7}, "reviews": {"read": 9}}, 7),
        ({"rows": {"read": 5, "kept": 4, "dropped": {"empty": 1}}}, 4),
        ({"sets": {"train": 1, "validation": 2, "test": 3}}, 6),
        ({"neighbours": 8}, 8),
        ({"train": {"read": 3, "kept": 2}}, 2),
        ({}, 0),
    ],
)
def test_rows_of_a_stage_are_what_it_kept(counts, rows):
    assert rows_kept(counts) == rows


def test_the_readme_says_what_the_kept_reports_say():
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, root / "scripts" / "render_readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_at_a_glance_has_a_row_for_each_report_of_a_run():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    import readme_runs

    rows = {"fusion": 0.7, "sasrec": 0.6, "pulse": 0.65, "pulse-fused": 0.71}
    paired = {"baseline": "fusion", "metric": "hr@1", "low": -0.01, "high": 0.03, "p": 0.2, "p_holm": 0.4}
    report = {
        "audit": {"passed": True},
        "protocol": {"synthetic": False, "users": 1234, "negatives": 9, "sampling": "uniform", "seeds": [0, 1]},
        "systems": {name: {"hr@1": {"value": value}} for name, value in rows.items()},
        "comparisons": [
            {**paired, "system": "pulse", "difference": -0.05},
            {**paired, "system": "pulse-fused", "difference": 0.01},
            {**paired, "system": "pulse-fused", "baseline": "sasrec", "difference": 0.11},
        ],
    }
    reports = {"shop": report, "other": {"rows": []}}
    last = readme_runs.glance(reports).splitlines()[-1]
    assert last == "| shop | 1,234 | 2 | fusion 0.700 | 0.650 | 0.710 | +0.010 [-0.010, +0.030], p 0.400 |"
    with pytest.raises(ValueError, match="failed its audit"):
        readme_runs.glance({"shop": {**report, "audit": {"passed": False}}})
