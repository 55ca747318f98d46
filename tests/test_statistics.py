"""Intervals cover, tests keep their level, Holm by hand."""

import numpy as np
import pytest
from scipy import stats

from pulse_hf.evaluation.statistics import Interval, bootstrap_means, holm, intervals, paired, paired_p


def test_the_value_is_the_mean_and_lies_inside():
    values = np.random.default_rng(0).random((300, 3))
    for column, span in enumerate(intervals(values, seed=1)):
        assert span.value == pytest.approx(values[:, column].mean())
        assert span.low < span.value < span.high


def test_half_width_matches_the_normal_one_for_a_proportion():
    hits = np.zeros((1_000, 1))
    hits[:300] = 1
    (span,) = intervals(hits, seed=0)
    expected = 1.96 * np.sqrt(0.3 * 0.7 / 1_000)
    assert (span.high - span.low) / 2 == pytest.approx(expected, rel=0.06)


def test_intervals_cover_the_truth_95_times_in_100():
    generator = np.random.default_rng(2)
    worlds = (generator.random((200, 1_000)) < 0.3).astype(float)
    spans = intervals(worlds, seed=3)
    covered = np.mean([span.low <= 0.3 <= span.high for span in spans])
    assert 0.925 <= covered <= 0.97


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(4).random((50, 1))
    assert intervals(values, seed=5) == intervals(values, seed=5)
    assert intervals(values, seed=5) != intervals(values, seed=6)


def test_resampling_in_chunks_changes_nothing_but_memory(monkeypatch):
    from pulse_hf.evaluation import statistics

    values = np.random.default_rng(4).random((40, 2))
    whole = bootstrap_means(values, seed=1, resamples=100)
    monkeypatch.setattr(statistics, "_CELLS_PER_CHUNK", 40 * 10)
    np.testing.assert_allclose(bootstrap_means(values, seed=1, resamples=100), whole)


def test_no_users_give_no_numbers():
    assert intervals(np.empty((0, 2)), seed=0) == [Interval(None, None, None)] * 2
    with pytest.raises(ValueError, match="at least one user"):
        paired(np.empty((0, 1)), seed=0)


def test_p_of_hits_agrees_with_the_exact_mcnemar_test():
    for better, worse in ((9, 1), (14, 6), (5, 5)):
        differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 40)[:, None]
        exact = stats.binomtest(better, better + worse, 0.5).pvalue
        assert paired_p(differences, seed=0)[0] == pytest.approx(exact, abs=0.015)


def test_p_agrees_with_scipys_permutation_test():
    sample = np.random.default_rng(8).normal(0.3, 1, size=12)
    exact = stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=10_000).pvalue
    assert paired_p(sample[:, None], seed=0)[0] == pytest.approx(exact, abs=0.015)


def test_under_a_true_null_5_in_100_are_rejected():
    generator = np.random.default_rng(9)
    first = (generator.random((300, 1_000)) < 0.4).astype(float)
    second = (generator.random((300, 1_000)) < 0.4).astype(float)
    rejected = np.mean(paired_p(first - second, seed=10, flips=999) <= 0.05)
    assert 0.03 <= rejected <= 0.07


def test_a_real_difference_is_found_and_p_is_never_zero():
    (row,) = paired(np.full((200, 1), 0.5), seed=0)
    assert (row.difference, row.low, row.high) == (0.5, 0.5, 0.5)
    assert row.p == pytest.approx(1e-4)


def test_the_test_is_two_sided_and_symmetric():
    differences = np.random.default_rng(3).normal(0.2, 1, size=(80, 1))
    assert paired_p(differences, seed=1)[0] == paired_p(-differences, seed=1)[0]


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4, 3, 2, 1 = .04 .06 .06 .04, then never falling: .04 .06 .06 .06.
    adjusted = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert adjusted == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert list(adjusted) == ["d", "a", "c", "b"]
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
