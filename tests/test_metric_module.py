"""The metric as an `evaluate` module: our own figures, and those of ir-measures where nothing is tied."""

from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Success, nDCG

from pulse_hf.metrics import METRICS, rank_metrics

FOLDER = Path(__file__).resolve().parents[1] / "hub_cards" / "metric"


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    import evaluate

    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_it_equals_our_own_figures_ties_included(metric):
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 4, rng.integers(2, 30)).astype(float) for _ in range(200)]
    targets = [int(rng.integers(len(row))) for row in scores]
    ours = {name: values.mean() for name, values in rank_metrics(scores, targets).items()}
    theirs = metric.compute(predictions=[row.tolist() for row in scores], references=targets)
    assert {name: theirs[name] for name in METRICS} == pytest.approx(ours, abs=1e-12)


def test_it_equals_ir_measures_without_ties(metric):
    rng = np.random.default_rng(1)
    scores = [rng.permutation(25).astype(float) for _ in range(100)]
    targets = [int(rng.integers(25)) for _ in scores]
    run = [ir_measures.ScoredDoc(str(q), str(d), s) for q, row in enumerate(scores) for d, s in enumerate(row)]
    qrels = [ir_measures.Qrel(str(q), str(target), 1) for q, target in enumerate(targets)]
    theirs = ir_measures.calc_aggregate([Success @ 1, Success @ 5, nDCG @ 10, RR], qrels, run)
    found = metric.compute(predictions=[row.tolist() for row in scores], references=targets)
    expected = {"hr@1": theirs[Success @ 1], "hr@5": theirs[Success @ 5]}
    expected |= {"ndcg@10": theirs[nDCG @ 10], "mrr": theirs[RR]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_hand_values_invalid_answers_and_misuse(metric):
    found = metric.compute(predictions=[[0.0] * 4, []], references=[2, 0], k=[1, 2])
    assert found == pytest.approx(
        {"hr@1": 0.125, "hr@2": 0.25, "ndcg@1": 0.125, "ndcg@2": (1 + 1 / np.log2(3)) / 8, "mrr": 25 / 12 / 8}
    )
    metric.add_batch(predictions=[[1.0, 0.0]], references=[0])
    metric.add_batch(predictions=[[1.0, 0.0]], references=[1])
    assert metric.compute(k=[1])["hr@1"] == 0.5
    for wrong, message in (([[1.0]], "none of 1"), ([[float("nan"), 1.0, 0, 0]], "not finite")):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=wrong, references=[3])
