"""Baselines on a shop of two tribes, where every answer can be worked out by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pulse_hf.artifacts import write_tensors
from pulse_hf.evaluation.baselines import (
    chance,
    item_knn,
    popularity,
    repeat,
    title_similarity,
)
from pulse_hf.evaluation.fusion import fusion
from pulse_hf.evaluation.fusion.joined import stacked_scores
from pulse_hf.evaluation.fusion.stacker import fit_stacker
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.score_book import ScoreBook, System
from pulse_hf.evaluation.systems import systems
from pulse_hf.metrics import rank_metrics
from pulse_hf.schema import CandidateSet, Decision, Item, Sequence

TEAS, RODS = ("tea-1", "tea-2", "tea-3"), ("rod-1", "rod-2", "rod-3")
CATALOGUE = (*TEAS, *RODS, "never-sold")


def sequence(user_id, item_ids):
    size = len(item_ids)
    return Sequence(user_id, tuple(item_ids), tuple(range(size)), (None,) * size, ("",) * size)


@pytest.fixture
def study(tmp_path):
    """Four tea drinkers, two anglers; the last event is the test target, the one before it validation."""
    people = {
        "ann": ["tea-1", "tea-2", "tea-3", "tea-3"],
        "bob": ["tea-1", "tea-2", "tea-3", "tea-1"],
        "cid": ["tea-1", "tea-2", "tea-2", "tea-1"],
        "dee": ["tea-1", "tea-3", "tea-1", "tea-2"],
        "eve": ["rod-1", "rod-2", "rod-1", "rod-3"],
        "fox": ["rod-1", "rod-3", "rod-1", "rod-2"],
    }
    sequences = {user: sequence(user, items) for user, items in people.items()}
    decisions = {}
    sets = {}
    for user, events in people.items():
        for position, split in ((2, "validation"), (3, "test")):
            decision = Decision(user, position, split)
            decisions[decision.decision_id] = decision
            place = CATALOGUE.index(events[position])
            sets[decision.decision_id] = CandidateSet(decision.decision_id, split, CATALOGUE, place)
    vectors = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 2.0]] * 3 + [[1.0, 1.0]])
    write_tensors(tmp_path / "sequential" / "item_vectors.safetensors", {"item_vectors": vectors})
    return Study(tmp_path, sequences, {name: Item(name, name, name) for name in CATALOGUE}, sets, decisions)


def test_popularity_counts_training_events_only(study):
    assert study.training_counts == {"tea-1": 4, "tea-2": 3, "tea-3": 1, "rod-1": 2, "rod-2": 1, "rod-3": 1}
    (row,) = popularity.scores(study, study.split("test")[:1])
    assert row.tolist() == [4, 3, 1, 2, 1, 1, 0]


def test_random_is_exactly_guessing(study):
    test = study.split("test")
    found = rank_metrics(chance.scores(study, test), study.targets(test))
    assert found["hr@1"].tolist() == [1 / 7] * 6


def test_repeat_puts_the_history_first_and_popularity_decides_inside(study):
    (eve,) = [d for d in study.split("test") if d.user_id == "eve"]
    (row,) = repeat.scores(study, [eve])
    assert [CATALOGUE[place] for place in np.argsort(-row)[:2]] == ["rod-1", "rod-2"]
    assert CATALOGUE[int(np.argsort(-row)[2])] == "tea-1"
    assert np.floor(row).tolist() == [0, 0, 0, 1, 1, 0, 0]


def test_item_knn_cosines_by_hand(study):
    similar = item_knn.cosines(study)
    index = study.item_index
    # tea-1 was trained on by 4 people, tea-2 by 3, all 3 of them had tea-1.
    assert similar[index["tea-1"], index["tea-2"]] == pytest.approx(3 / np.sqrt(4 * 3))
    assert similar[index["rod-1"], index["rod-3"]] == pytest.approx(1 / np.sqrt(2 * 1))
    assert similar[index["tea-1"], index["rod-1"]] == 0
    assert similar[index["tea-1"], index["tea-1"]] == pytest.approx(1)
    assert similar[index["never-sold"], index["never-sold"]] == 0


def test_item_knn_keeps_the_tribes_apart_and_breaks_ties_by_popularity(study):
    for decision, row in zip(study.split("test"), item_knn.scores(study, study.split("test")), strict=True):
        own = TEAS if decision.user_id in {"ann", "bob", "cid", "dee"} else RODS
        ranked = [CATALOGUE[place] for place in np.argsort(-row, kind="stable")]
        assert set(ranked[:3]) == set(own)
    fishing = dict(zip(CATALOGUE, row, strict=True))
    assert fishing["tea-1"] > fishing["tea-2"] > fishing["never-sold"] == 0


def test_title_similarity_is_the_stated_mix_of_max_and_mean(study):
    (ann,) = [d for d in study.split("test") if d.user_id == "ann"]
    (row,) = title_similarity.scores(study, [ann])
    assert row == pytest.approx([1, 1, 1, 0, 0, 0, np.sqrt(0.5)], abs=1e-6)
    decision = Decision("ann", 2, "validation")
    mixed = Study(study.run, {"ann": sequence("ann", ["tea-1", "rod-1", "tea-2"])}, study.items, study.sets, {})
    (row,) = title_similarity.scores(mixed, [decision])
    assert row[:6] == pytest.approx([0.7 * 1 + 0.3 * 0.5] * 6)


def test_title_similarity_reads_the_last_ten_events_only(study):
    long = sequence("ann", ["rod-1"] + ["tea-1"] * 10 + ["tea-2"])
    decision = Decision("ann", 11, "test")
    sets = {decision.decision_id: CandidateSet(decision.decision_id, "test", CATALOGUE, 1)}
    ten = Study(study.run, {"ann": long}, study.items, sets, {decision.decision_id: decision})
    (row,) = title_similarity.scores(ten, [decision])
    assert row[CATALOGUE.index("rod-1")] == pytest.approx(0)
    nine = sequence("ann", ["rod-1"] + ["tea-1"] * 9 + ["tea-2", "tea-2"])
    decision = Decision("ann", 10, "test")
    sets = {decision.decision_id: CandidateSet(decision.decision_id, "test", CATALOGUE, 1)}
    (row,) = title_similarity.scores(Study(study.run, {"ann": nine}, study.items, sets, {}), [decision])
    assert row[CATALOGUE.index("rod-1")] == pytest.approx(0.7 * 1 + 0.3 * 0.1)


def test_vectors_of_another_catalogue_are_refused(study):
    write_tensors(study.run / "sequential" / "item_vectors.safetensors", {"item_vectors": torch.ones(6, 2)})
    with pytest.raises(ValueError, match="expected one tensor with 7 rows"):
        title_similarity.scores(study, study.split("test"))


def made_up(seed, decisions=600, num_candidates=10):
    """A world in which one ingredient decides, one is noise, and one is constant."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(5, 3, size=(decisions, num_candidates))
    chance_of = np.exp(signal / 3 * 1.5)
    chance_of /= chance_of.sum(axis=1, keepdims=True)
    targets = [int(generator.choice(num_candidates, p=row)) for row in chance_of]
    noise = generator.normal(-2, 40, size=(decisions, num_candidates))
    constant = np.full((decisions, num_candidates), 7.0)
    return {"signal": list(signal), "noise": list(noise), "constant": list(constant)}, targets


def test_the_stacker_recovers_the_weight_of_what_decides_and_gives_none_to_noise():
    stacker = fit_stacker(*made_up(0))
    weights = dict(zip(stacker.names, stacker.weights, strict=True))
    assert weights["signal"] == pytest.approx(1.5, abs=0.15)
    assert abs(weights["noise"]) < 0.12
    assert weights["constant"] == pytest.approx(0, abs=1e-6)
    assert stacker.decisions == 600


def test_a_fused_score_does_not_depend_on_the_company_of_a_candidate():
    ingredients, targets = made_up(1)
    stacker = fit_stacker(ingredients, targets)
    whole = stacker.scores({name: rows[:1] for name, rows in ingredients.items()})
    few = stacker.scores({name: [rows[0][[3, 1]]] for name, rows in ingredients.items()})
    assert few[0] == pytest.approx(whole[0][[3, 1]])


def test_the_stacker_does_not_care_about_units_or_a_users_offset():
    ingredients, targets = made_up(2)
    offset = np.random.default_rng(0).normal(0, 100, size=600)
    moved = {**ingredients, "signal": [1000 * row + 3 for row in ingredients["signal"]]}
    first, second = fit_stacker(ingredients, targets), fit_stacker(moved, targets)
    assert second.weights == pytest.approx(first.weights, abs=1e-4)
    shifted = {**ingredients, "signal": [row + o for row, o in zip(ingredients["signal"], offset, strict=True)]}
    assert fit_stacker(shifted, targets).weights == pytest.approx(first.weights, abs=1e-4)


def test_the_stacker_takes_sets_of_different_sizes():
    ingredients, targets = made_up(3)
    full = fit_stacker(ingredients, targets)
    cut = {}
    for name, rows in ingredients.items():
        cut[name] = [
            row[: target + 1] if place % 7 == 0 else row
            for place, (row, target) in enumerate(zip(rows, targets, strict=True))
        ]
    ragged = fit_stacker(cut, targets)
    assert ragged.weights[0] == pytest.approx(full.weights[0], abs=0.3)
    assert [len(row) for row in ragged.scores(cut)] == [len(row) for row in cut["signal"]]


def test_the_stacker_refuses_nothing_and_nonsense():
    with pytest.raises(ValueError, match="found none"):
        fit_stacker({"signal": []}, [])
    with pytest.raises(ValueError, match="ingredient noise is not finite"):
        fit_stacker({"signal": [np.ones(2)], "noise": [np.array([1.0, np.nan])]}, [0])


def test_log_popularity_is_the_log_of_one_more_than_training_events(study):
    (row,) = popularity.log_popularity(study, study.split("test")[:1])
    assert row == pytest.approx(np.log([5, 4, 2, 3, 2, 2, 1]))


def test_fusion_is_fitted_on_validation_alone_and_applied_to_test(study, tmp_path):
    book = ScoreBook(tmp_path / "scores", study)
    parts = ("popularity", "repeat")
    known = systems(book, l2=0.1)
    fused = System("fusion", partial(stacked_scores, book=book, parts=[known[part] for part in parts], l2=0.1))
    rows = book.rows(fused, "test")
    validation, test = study.split("validation"), study.split("test")
    scorers = {"popularity": popularity.scores, "repeat": repeat.scores}
    given = {name: score(study, validation) for name, score in scorers.items()}
    expected = fusion.fit_fusion(given, fusion.events_shares(study, validation), study.targets(validation), l2=0.1)
    assert book.beside(fused, "test")["stacker"]["weights"] == pytest.approx(list(expected.stacker.weights))
    gates = fusion.events_shares(study, test)
    wanted = expected.scores({name: score(study, test) for name, score in scorers.items()}, gates)
    for row, right in zip(rows, wanted, strict=True):
        assert row == pytest.approx(right)
    on_test = fusion.fit_fusion(
        {name: score(study, test) for name, score in scorers.items()}, gates, study.targets(test), l2=0.1
    )
    assert on_test.stacker.weights != pytest.approx(expected.stacker.weights)


def test_the_pull_that_was_chosen_is_the_one_that_is_fitted_with():
    generator = np.random.default_rng(0)
    rows = {name: list(generator.normal(size=(60, 5))) for name in ("noise", "more noise")}
    gates = [np.full(5, 0.5)] * 60
    targets = generator.integers(5, size=60).tolist()
    fitted = fusion.fit_fusion(rows, gates, targets, l2=0.01)
    assert fitted.l2 > 0.01, "noise asks for the stronger pulls"
    read = rows if fitted.centres is None else fusion.by_popularity(rows, gates, fitted.centres)
    right = fit_stacker(read, targets, l2=fitted.l2)
    assert fitted.stacker.weights == pytest.approx(right.weights)
    assert fitted.stacker.weights != pytest.approx(fit_stacker(read, targets, l2=0.01).weights)


def test_a_target_is_cold_up_to_five_training_events(study):
    decisions = study.split("test")
    items = study.target_items(decisions)
    copied = replace(study)
    copied.__dict__["training_counts"] = {item: 4 + place % 3 for place, item in enumerate(dict.fromkeys(items))}
    counts = [copied.training_counts[item] for item in items]
    assert {4, 5, 6} == set(counts)
    assert copied.cold(decisions).tolist() == [count <= 5 for count in counts]


def rare_and_popular(seed, decisions=800, candidates=8):
    """A world in which text decides among rare items and sequence among popular ones."""
    generator = np.random.default_rng(seed)
    gates = generator.choice([0.0, 0.9], size=(decisions, candidates))
    text, sequence = generator.normal(3, 1, size=(2, decisions, candidates))
    worth = 3 * np.where(gates > 0, sequence, text)
    chance_of = np.exp(worth - worth.max(axis=1, keepdims=True))
    chance_of /= chance_of.sum(axis=1, keepdims=True)
    targets = [int(generator.choice(candidates, p=row)) for row in chance_of]
    return {"text": list(text), "sequence": list(sequence)}, list(gates), targets


def test_popularity_enters_the_fusion_where_validation_asks_for_it():
    rows, gates, targets = rare_and_popular(0)
    fitted = fusion.fit_fusion(rows, gates, targets, l2=1e-3)
    assert fitted.centres is not None
    others, shares, chosen = rare_and_popular(1)
    plain = fit_stacker(rows, targets)
    calibrated = fusion.log_loss(fitted.scores(others, shares), chosen)
    assert calibrated < fusion.log_loss(plain.scores(others), chosen) - 0.2
    few = fitted.scores({name: [row[0][[3, 1]]] for name, row in others.items()}, [shares[0][[3, 1]]])
    assert few[0] == pytest.approx(fitted.scores(others, shares)[0][[3, 1]])  # no word of a candidate's company


def test_the_fusion_stays_plain_where_popularity_tells_nothing():
    ingredients, targets = made_up(4, decisions=300)
    gates = list(np.random.default_rng(0).uniform(0, 1, size=(300, 10)))
    fitted = fusion.fit_fusion(ingredients, gates, targets, l2=1e-3)
    assert fitted.centres is None
    assert len(fitted.cross_validated) == 8
    assert fitted.cross_validated[min(fitted.cross_validated, key=fitted.cross_validated.get)] < np.log(10)


def test_a_handful_of_decisions_is_not_split():
    ingredients, targets = made_up(5, decisions=4)
    fitted = fusion.fit_fusion(ingredients, list(np.zeros((4, 10))), targets, l2=1e-3)
    assert (fitted.centres, fitted.cross_validated) == (None, {})


def test_the_book_scores_once_and_refuses_rows_that_do_not_fit(study, tmp_path):
    book = ScoreBook(tmp_path / "scores", study)
    calls = []

    def counted(study, decisions):
        calls.append(len(decisions))
        return [None, *chance.scores(study, decisions)[1:]]

    first = book.rows(System("odd", counted), "test")
    assert book.rows(System("odd", counted), "test")[0] is None is first[0]
    assert calls == [6]
    with pytest.raises(ValueError, match="few gave 0 rows of scores for 6 decisions"):
        book.rows(System("few", lambda study, decisions: []), "test")
    with pytest.raises(ValueError, match="2 scores for 7 candidates"):
        book.rows(System("short", lambda study, decisions: [np.zeros(2)] * 6), "test")
