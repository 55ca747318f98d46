"""Similar users, what they lend, and candidate sets: exact invariants."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import event_row, table, write_rows

from pulse_hf import artifacts
from pulse_hf.data.columns import Columns
from pulse_hf.data.prepare import prepare
from pulse_hf.data.sequences import decisions, training_decisions
from pulse_hf.retrieval import candidates as stage
from pulse_hf.retrieval.candidates import (
    CandidateSettings,
    candidates,
    candidates_sha256,
    draw_candidates,
    load_candidates,
)
from pulse_hf.retrieval.names import Names
from pulse_hf.retrieval.retriever import Pool, Retriever
from pulse_hf.retrieval.similar_users import NO_USER, lend_items, lendable, neighbours
from pulse_hf.schema import Item, Sequence

ITEMS = [f"i{number}" for number in range(60)]


def user(name: str, items, times=()) -> Sequence:
    return Sequence(name, tuple(items), tuple(times), (None,) * len(items), ("",) * len(items))


def shop(num_users: int = 200, seed: int = 0) -> list[Sequence]:
    generator = np.random.default_rng(seed)
    return [
        user(f"u{number}", generator.choice(ITEMS, int(generator.integers(1, 12)), replace=False).tolist())
        for number in range(num_users)
    ]


def all_decisions(sequences):
    return [*decisions(sequences, "test"), *decisions(sequences, "validation"), *training_decisions(sequences, 99)]


# -- similar users ---------------------------------------------------------------------------------


def test_neighbours_equal_a_plain_search():
    generator = np.random.default_rng(0)
    pool, queries = generator.normal(size=(300, 8)), generator.normal(size=(70, 8))
    names = [f"u{number}" for number in range(300)]
    places, cosines = neighbours(queries, names[:70], pool, names, 5, block=32)
    unit = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    exact = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ unit.T
    exact[np.arange(70), np.arange(70)] = -np.inf
    assert places.tolist() == np.argsort(-exact, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :5], atol=2e-6)


def test_two_tribes_find_their_own_and_never_themselves():
    generator = np.random.default_rng(0)
    vectors = np.repeat([[1.0, 0.0], [0.0, 1.0]], 20, axis=0) + generator.normal(scale=0.05, size=(40, 2))
    names = [f"u{number}" for number in range(40)]
    places, _ = neighbours(vectors, names, vectors, names, 10)
    for row, found in enumerate(places.tolist()):
        assert row not in found
        assert {place // 20 for place in found} == {row // 20}


def test_ties_do_not_depend_on_the_order_of_the_pool():
    generator = np.random.default_rng(0)
    vectors = generator.integers(0, 2, size=(120, 3)) + np.array([0, 0, 1])  # few directions: ties everywhere
    names = [f"u{number}" for number in range(120)]
    places, _ = neighbours(vectors, names, vectors, names, 7)
    expected = [[names[place] for place in row] for row in places]
    order = generator.permutation(120)
    shuffled = [names[place] for place in order]
    places, _ = neighbours(vectors, names, vectors[order], shuffled, 7, block=11)
    assert [[shuffled[place] for place in row] for row in places] == expected
    # and not the alphabet: the first of the ties is not always the smallest id
    assert [row[0] for row in expected] != sorted(row[0] for row in expected)


def test_a_small_pool_gives_what_it_has():
    places, cosines = neighbours(np.eye(2), ["a", "new"], np.eye(2), ["a", "b"], 3)
    assert places.tolist() == [[1, NO_USER, NO_USER], [1, 0, NO_USER]]
    assert cosines[0].tolist() == [0.0, -np.inf, -np.inf]


def test_bad_vectors_are_refused_by_name():
    bad = np.eye(2)
    bad[1, 0] = np.nan
    with pytest.raises(ValueError, match="user 'b' is not finite"):
        neighbours(np.eye(2), ["a", "b"], bad, ["a", "b"], 1)
    with pytest.raises(ValueError, match="one per user"):
        neighbours(np.eye(2), ["a", "b"], np.eye(2), ["a", "a"], 1)
    with pytest.raises(ValueError, match="expected at least 1"):
        neighbours(np.eye(2), ["a", "b"], np.eye(2), ["a", "b"], 0)


def test_only_training_items_are_lent():
    lenders = lendable([user("n", ["a", "b", "validation", "test"]), user("short", ["c", "d"])])
    assert lend_items(["n", "short"], [0.5, 0.4], lenders, history=[], before=None, max_items=9) == [
        "b",
        "a",
        "d",
        "c",
    ]


def test_only_items_before_the_targets_time_are_lent_and_none_that_are_known():
    lenders = {"n": user("n", ["early", "known", "same", "late"], [1, 2, 5, 6])}
    assert lend_items(["n"], [1.0], lenders, history=["known"], before=5, max_items=9) == ["early"]


def test_votes_are_weighted_by_similarity():
    lenders = {"a": user("a", ["x"]), "b": user("b", ["y", "y"]), "c": user("c", ["y"]), "d": user("d", ["z"])}
    lent = lend_items(["a", "b", "c", "d"], [0.7, 0.4, 0.4, -0.9], lenders, history=[], before=None, max_items=2)
    assert lent == ["y", "x"]
    lenders = {"a": user("a", ["x"]), "b": user("b", ["x"]), "c": user("c", ["y"])}
    lent = lend_items(["a", "c", "b"], [0.4, 0.1, -0.9], lenders, history=[], before=None, max_items=2)
    assert lent == ["x", "y"]  # who is unlike does not vote against


def lent_by(history, rows, vectors, num_neighbours=1):
    """What a catalogue's people lend to a history whose vector is (1, 0)."""
    items = {one: Item(one, one, one) for one in ITEMS}
    asked = SimpleNamespace(user_vectors=lambda histories: torch.tensor([[1.0, 0.0]] * len(histories)))
    names = Names(items, np.zeros((60, 2), np.float32), "none is asked")
    pool = Pool(np.array(vectors, np.float32), rows)
    retriever = Retriever(asked, names, pool, num_neighbours, 9)
    return retriever.lent(*names.read(history))


def test_a_person_is_not_lent_what_they_chose_later():
    own, other = ("i1", "i2", "i3", "i4", "i5"), ("i1", "i2", "i7")
    near, far = [1.0, 0.1], [1.0, 0.4]
    for known in (3, 4, 5):
        assert lent_by(own[:known], [own, other], [near, far]) == ["i7"]
    assert lent_by((*own, "i6"), [own, other], [near, far]) == ["i7"]
    # Two events alike are a coincidence, and so is a start that goes on otherwise.
    assert lent_by(own[:2], [own, other], [near, far]) == ["i5", "i4", "i3"]
    assert lent_by(("i1", "i2", "i9"), [own, other], [near, far]) == ["i5", "i4", "i3"]


def test_whoever_a_short_row_belongs_to_a_later_one_is_never_lent():
    own, short, twin = ("i1", "i2", "i3", "i4"), ("i1",), ("i1", "i2", "i3", "i8")
    rows, vectors = [short, own, twin, ("i7",)], [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]
    assert lent_by(own[:3], rows, vectors, num_neighbours=2) == ["i7"]


# -- candidates ------------------------------------------------------------------------------------


def test_ten_thousand_sets_keep_every_rule():
    sequences = shop(2_200)
    by_user = {sequence.user_id: sequence for sequence in sequences}
    chosen = all_decisions(sequences)
    sets = draw_candidates(sequences, ITEMS, chosen, CandidateSettings(), seed=0)
    assert len(sets) > 10_000
    for decision, one in zip(chosen, sets, strict=True):
        sequence = by_user[decision.user_id]
        target = sequence.item_ids[decision.position]
        known = sequence.training() if decision.split == "train" else sequence.before(decision.position + 1)
        negatives = [item for item in one.item_ids if item != target]
        assert one.item_ids[one.target_index] == target
        assert len(one.item_ids) == 10
        assert len(set(negatives)) == 9
        assert not set(negatives) & set(known.item_ids)
        assert (one.decision_id, one.split) == (decision.decision_id, decision.split)


def test_targets_stand_anywhere_alike():
    sequences = shop(2_200)
    sets = draw_candidates(sequences, ITEMS, all_decisions(sequences), CandidateSettings(), seed=0)
    counts = np.bincount([one.target_index for one in sets], minlength=10)
    expected = len(sets) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.88  # chi-square, 9 degrees of freedom, p = .001


def test_negatives_are_uniform_over_what_is_left():
    sequence = user("u", ["i3", "i10", "i59"])
    others = [replace(sequence, user_id=f"u{number}") for number in range(5_000)]
    sets = draw_candidates(others, ITEMS, decisions(others, "test"), CandidateSettings(), seed=1)
    counts = Counter(item for one in sets for item in one.item_ids)
    assert counts.pop("i59") == 5_000
    assert set(counts) == set(ITEMS) - set(sequence.item_ids)
    expected = 5_000 * 9 / 57
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 94.5  # 56 degrees of freedom, p = .001


def test_sets_depend_neither_on_the_order_of_users_nor_of_items():
    sequences = shop()
    shuffled, items = sequences[:], ITEMS[:]
    random.Random(0).shuffle(shuffled)
    random.Random(1).shuffle(items)
    settings = CandidateSettings()
    first = draw_candidates(sequences, ITEMS, all_decisions(sequences), settings, seed=0)
    second = draw_candidates(shuffled, items, all_decisions(shuffled), settings, seed=0)
    assert {one.decision_id: one for one in first} == {one.decision_id: one for one in second}
    assert candidates_sha256(first) == candidates_sha256(second)
    third = draw_candidates(sequences, ITEMS, all_decisions(sequences), settings, seed=1)
    assert candidates_sha256(first) != candidates_sha256(third)


def test_training_sets_do_not_know_later_targets():
    sequences = shop()
    generator = np.random.default_rng(5)
    swapped = [
        replace(sequence, item_ids=(*sequence.training().item_ids, *generator.choice(ITEMS, 2).tolist()))
        if len(sequence) >= 3
        else sequence
        for sequence in sequences
    ]
    settings = CandidateSettings()
    first, second = (
        draw_candidates(world, ITEMS, training_decisions(world, 99), settings, seed=0)
        for world in (sequences, swapped)
    )
    assert first == second
    tests = [
        draw_candidates(world, ITEMS, decisions(world, "test"), settings, seed=0) for world in (sequences, swapped)
    ]
    assert tests[0] != tests[1]


def test_a_repeated_target_stays_the_target():
    sequence = user("u", ["i1", "i2", "i1"])
    (one,) = draw_candidates([sequence], ITEMS, decisions([sequence], "test"), CandidateSettings(), seed=0)
    assert one.item_ids.count("i1") == 1
    assert one.item_ids[one.target_index] == "i1"


def test_the_smallest_catalogue_works_and_a_smaller_one_is_refused_with_both_numbers():
    sequence = user("u", ["i1", "i2", "i3"])
    settings = CandidateSettings(num_negatives=9)
    (one,) = draw_candidates([sequence], ITEMS[:12], decisions([sequence], "test"), settings, seed=0)
    assert set(one.item_ids) == set(ITEMS[:12]) - {"i1", "i2"}
    with pytest.raises(ValueError, match="9 negatives wanted, but a catalogue of 11 items leaves 8"):
        draw_candidates([sequence], ITEMS[:11], decisions([sequence], "test"), settings, seed=0)
    with pytest.raises(ValueError, match="'i3' is not in the catalogue"):
        draw_candidates([sequence], ITEMS[:3], decisions([sequence], "test"), settings, seed=0)


def test_popular_negatives_are_drawn_as_often_as_they_are_chosen_in_training():
    chooser = user("u", ["i3", "i10", "i59"])
    crowd = [user(f"c{n}", [f"i{1 + n % 4}", f"i{1 + n % 2}", "i40", "i41", "i42"]) for n in range(40)]
    others = [replace(chooser, user_id=f"u{number}") for number in range(4_000)]
    settings = CandidateSettings(num_negatives=1, sampling="popularity")
    sets = draw_candidates([*crowd, *others], ITEMS, decisions(others, "test"), settings, seed=0)
    counts = Counter(item for one in sets for item in one.item_ids)
    assert counts.pop("i59") == 4_000
    # Training events of the crowd: i1 and i2 30 each, i4 10, i40 40; i3 is in the history.
    assert set(counts) == {"i1", "i2", "i4", "i40"}
    expected = {"i1": 30, "i2": 30, "i4": 10, "i40": 40}
    chi_square = sum((counts[item] - 4_000 * n / 110) ** 2 / (4_000 * n / 110) for item, n in expected.items())
    assert chi_square < 16.27  # 3 degrees of freedom, p = .001
    with pytest.raises(ValueError, match="leaves 4 to draw"):
        draw_candidates(
            [*crowd, *others], ITEMS, decisions(others, "test"), replace(settings, num_negatives=5), seed=0
        )


def test_full_sets_hold_everything_new_and_training_sets_stay_samples():
    sequence = user("u", ["i1", "i2", "i3", "i4"])
    settings = CandidateSettings(sampling="full", num_negatives=5)
    chosen = [*decisions([sequence], "test"), *decisions([sequence], "validation"), *decisions([sequence], "train")]
    test, validation, train = draw_candidates([sequence], ITEMS, chosen, settings, seed=0)
    assert sorted(test.item_ids) == sorted(set(ITEMS) - {"i1", "i2", "i3"})
    assert sorted(validation.item_ids) == sorted(set(ITEMS) - {"i1", "i2"})
    assert len(train.item_ids) == 6
    assert test.item_ids[test.target_index] == "i4"
    many = [replace(sequence, user_id=f"u{number}") for number in range(900_000)]
    with pytest.raises(ValueError, match="900,000 full sets of 60 items do not fit"):
        draw_candidates(many, ITEMS, decisions(many, "test"), settings, seed=0)


@pytest.mark.parametrize("sampling", ["sasrec", "dice"])
def test_other_samplings_are_refused_by_name(tmp_path, sampling):
    with pytest.raises(ValueError, match=sampling):
        candidates(tmp_path, CandidateSettings(sampling=sampling), seed=0)


def prepared(run, sequences):
    def make(work):
        items = [Item(item_id, item_id, item_id) for item_id in ITEMS]
        artifacts.write_table(work / "sequences.parquet", "sequences", sequences)
        artifacts.write_table(work / "items.parquet", "items", items)
        return {}

    artifacts.build(run / "sequences", artifacts.Fingerprint("prepare", {}, 0), make)


def test_the_stage_stores_what_it_draws_and_samples_whole_users(tmp_path):
    sequences = shop()
    prepared(tmp_path, sequences)
    settings = CandidateSettings(training_decisions_per_user=3, max_test_users=50, max_train_users=20)
    folder = candidates(tmp_path, settings, seed=0)
    artifacts.verify(folder)
    sets = load_candidates(tmp_path)
    chosen = stage.chosen_decisions(sequences, settings, seed=0)
    assert sets == draw_candidates(sequences, ITEMS, chosen, settings, seed=0)
    users = {split: {d.user_id for d in chosen if d.split == split} for split in ("train", "validation", "test")}
    assert len(users["test"]) == 50
    assert len(users["train"]) == 20
    assert len(users["validation"]) == len(decisions(sequences, "validation"))
    assert {d.decision_id for d in chosen if d.split == "train"} == {
        d.decision_id for d in training_decisions(sequences, 3) if d.user_id in users["train"]
    }
    assert "settings.test_users_seed" not in artifacts.read_manifest(folder)["fingerprint"]
    counts = artifacts.read_manifest(folder)["counts"]
    assert counts["candidates_sha256"]["test"] == candidates_sha256(one for one in sets if one.split == "test")
    assert counts["inputs_sha256"]["candidates"] == candidates_sha256(one for one in sets if one.split == "train")


def test_data_without_a_target_is_warned_of_and_has_no_candidates(tmp_path, caplog):
    log = write_rows(tmp_path / "log.jsonl", [event_row(f"u{n}", f"i{n % 7}", n + 1) for n in range(20)])
    prepare(tmp_path, table(log, min_user_events=0, min_item_events=0, columns=Columns()), seed=0)
    assert "none of the 20 users has a test target" in caplog.text
    with pytest.raises(ValueError, match="none of the 20 users has a target"):
        stage.candidates(tmp_path, CandidateSettings(), seed=0)


def test_runs_of_several_seeds_may_share_their_test_users():
    def users(split, *, seed, test_users_seed):
        settings = CandidateSettings(
            max_test_users=50, max_train_users=50, max_validation_users=50, test_users_seed=test_users_seed
        )
        chosen = stage.chosen_decisions(shop(), settings, seed=seed)
        return {decision.user_id for decision in chosen if decision.split == split}

    assert users("test", seed=1, test_users_seed=None) != users("test", seed=2, test_users_seed=None)
    assert users("test", seed=1, test_users_seed=0) == users("test", seed=2, test_users_seed=0)
    assert users("test", seed=2, test_users_seed=0) == users("test", seed=0, test_users_seed=None)
    for split in ("train", "validation"):  # only the test users are shared
        assert users(split, seed=1, test_users_seed=0) == users(split, seed=1, test_users_seed=None)
