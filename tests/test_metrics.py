"""Rank metrics against closed forms, hand-worked ranks, brute force over tie-breaks, and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_hf.metrics import METRICS, rank_metrics


def metrics_of_rank(rank: int) -> dict[str, float]:
    """The plain definitions, written out once more."""
    hits = {f"hr@{k}": float(rank <= k) for k in (1, 5, 10)}
    return {**hits, "ndcg@10": 1 / math.log2(rank + 1) if rank <= 10 else 0.0, "mrr": 1 / rank}


@pytest.mark.parametrize("rank", [1, 2, 5, 6, 10, 11, 20])
def test_every_rank_gets_its_textbook_value_wherever_the_target_stands(rank):
    scores = np.array([float(-place) for place in range(1, 21)])
    for target in range(20):
        order = np.roll(scores, target - (rank - 1))
        found = rank_metrics([order], [target])
        assert {name: found[name][0] for name in METRICS} == metrics_of_rank(rank)


@pytest.mark.parametrize("num_candidates", [1, 2, 10, 20])
def test_constant_scores_get_exactly_the_value_of_guessing(num_candidates):
    for target in range(num_candidates):
        found = rank_metrics([np.full(num_candidates, 0.3)], [target])
        ranks = range(1, num_candidates + 1)
        for k in (1, 5, 10):
            assert found[f"hr@{k}"][0] == min(k, num_candidates) / num_candidates
        assert found["mrr"][0] == pytest.approx(sum(1 / r for r in ranks) / num_candidates, abs=1e-15)
        dcg = sum(1 / math.log2(r + 1) for r in ranks if r <= 10)
        assert found["ndcg@10"][0] == pytest.approx(dcg / num_candidates, abs=1e-15)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_ties_equal_the_mean_over_all_orders_of_the_tied(levels, data):
    target = data.draw(st.integers(0, len(levels) - 1))
    found = rank_metrics([np.array(levels, dtype=float)], [target])
    places = range(len(levels))
    orders = [sorted(p, key=lambda place: -levels[place]) for p in itertools.permutations(places)]
    expected = [metrics_of_rank(order.index(target) + 1) for order in orders]
    for name in METRICS:
        assert found[name][0] == pytest.approx(np.mean([row[name] for row in expected]), abs=1e-12)


def test_ndcg_agrees_with_scikit_learn_with_and_without_ties():
    from sklearn.metrics import ndcg_score

    generator = np.random.default_rng(0)
    for levels in (3, 10_000):
        scores = generator.integers(0, levels, size=(50, 20)).astype(float)
        targets = generator.integers(0, 20, size=50).tolist()
        found = rank_metrics(list(scores), targets)["ndcg@10"]
        # scikit-learn's tie-aware form exists without a cut-off only, so compare on sets of 10.
        small = rank_metrics(list(scores[:, :10]), [t % 10 for t in targets])["ndcg@10"]
        for row in range(50):
            truth = np.zeros((1, 10))
            truth[0, targets[row] % 10] = 1
            assert small[row] == pytest.approx(ndcg_score(truth, scores[row : row + 1, :10]), abs=1e-12)
        assert np.all((found >= 0) & (found <= 1))


def test_an_invalid_answer_is_a_miss_that_stays_in_the_denominator():
    found = rank_metrics([np.array([2.0, 1.0]), None, np.array([2.0, 1.0])], [0, 0, 1])
    assert found["hr@1"].tolist() == [1.0, 0.0, 0.0]
    assert found["mrr"].tolist() == [1.0, 0.0, 0.5]
    assert all(len(found[name]) == 3 for name in METRICS)


def test_only_invalid_answers_and_no_answers_at_all():
    assert rank_metrics([None], [0])["hr@10"].tolist() == [0.0]
    assert rank_metrics([], [])["hr@10"].tolist() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_score_that_is_not_finite_names_system_and_decision(bad, place):
    scores = np.array([1.0, 2.0, 3.0])
    scores[place] = bad
    with pytest.raises(ValueError, match=r"pulse, decision u9#4: score .* of candidate \d is not finite"):
        rank_metrics([np.ones(3), scores], [0, 0], system="pulse", decision_ids=["u1#2", "u9#4"])


def test_rows_and_targets_must_match():
    with pytest.raises(ValueError, match="1 rows of scores, 2 targets"):
        rank_metrics([np.ones(3)], [0, 1], system="pulse", decision_ids=["a"])
    with pytest.raises(ValueError, match="hold no candidate number 3"):
        rank_metrics([np.ones(3)], [3])


def test_sets_of_different_size_do_not_disturb_each_other():
    generator = np.random.default_rng(1)
    rows = [generator.normal(size=size) for size in (2, 30, 7)]
    together = rank_metrics(rows, [1, 20, 3])
    for place, target in enumerate([1, 20, 3]):
        alone = rank_metrics([rows[place]], [target])
        assert [together[name][place] for name in METRICS] == [alone[name][0] for name in METRICS]
