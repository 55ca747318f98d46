"""Votes of shared reasons: hand-computed values, and what they may not depend on."""

import math

import numpy as np
import pytest

from pulse_hf.reasoning.examples import PromptShape, Thought, examples_of_sets, scorer_example
from pulse_hf.reasoning.shared_reasons import SharedReasons, chosen_for, inputs_sha256
from pulse_hf.schema import CandidateSet, Item, Sequence

ITEMS = {name: Item(name, f"title {name}", f"title {name}") for name in "abc"}
PLACES = {name: place for place, name in enumerate(ITEMS)}
POINTS = {"east": [1.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}
WIDTH = {"temperature": 0.5, "smoothing": 0.25}


def votes(users=("u", "v", "w")):
    """Two rationales for a (east, north), one for b (west), none for c."""
    vectors = np.array([POINTS["east"], POINTS["north"], POINTS["west"]], dtype=np.float32)
    return SharedReasons(
        vectors, np.array([0, 0, 1]), PLACES, lambda texts: np.array([POINTS[text] for text in texts]), users
    )


def test_evidence_by_hand():
    support = {"a": 1 + math.exp(-2), "b": math.exp(-4), "c": 0.0}
    mean = sum(support.values()) / 3
    expected = [math.log((support[name] / mean + 0.25) / 1.25) for name in "abc"]
    assert votes().evidence("east", ["a", "b", "c"], **WIDTH) == pytest.approx(expected, abs=1e-6)


def test_evidence_depends_neither_on_order_nor_on_company():
    together = dict(zip("cab", votes().evidence("north", list("cab"), **WIDTH), strict=True))
    for name in "abc":
        assert votes().evidence("north", [name], **WIDTH) == [together[name]]


def test_a_persons_own_rationales_do_not_vote():
    without = SharedReasons(votes().vectors[1:], np.array([0, 1]), PLACES, votes().encode)
    expected = without.evidence("east", list("abc"), **WIDTH)
    assert votes().evidence("east", list("abc"), user_id="u", **WIDTH) == pytest.approx(expected)
    assert votes().evidence("east", list("abc"), user_id="somebody new", **WIDTH) != pytest.approx(expected)


def test_nothing_is_known_without_a_reason_and_of_new_items():
    assert votes().evidence(None, list("abc"), **WIDTH) == [0.0] * 3
    assert votes().evidence("", ["a"], **WIDTH) == [0.0]
    assert votes().evidence("east", ["new", "a"], **WIDTH)[0] == 0.0
    empty = SharedReasons(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), PLACES, votes().encode)
    assert empty.evidence("east", ["a"], **WIDTH) == [0.0]
    assert votes(users=("u", "u", "u")).evidence("east", ["a"], user_id="u", **WIDTH) == [0.0]


def test_reasons_are_encoded_once_and_together():
    calls = []
    shared = votes()
    encode = shared.encode
    shared.encode = lambda texts: calls.append(list(texts)) or encode(texts)
    shared.read(["east", "", "north", "east"])
    shared.evidence("north", ["a"], **WIDTH)
    assert calls == [["east", "north"]]


def test_a_vector_without_an_item_is_refused():
    with pytest.raises(ValueError, match="3 vectors for 2 items"):
        SharedReasons(votes().vectors, np.array([0, 1]), PLACES, votes().encode)


def test_who_chose_what_comes_from_the_sequences():
    sequences = {"u": Sequence("u", ("a", "b", "c"), (), (None,) * 3, ("",) * 3)}
    rows = [{"user_id": "u", "position": 1, "status": "ok"}, {"user_id": "u", "position": 2, "status": "empty"}]
    assert chosen_for(rows, sequences) == [("u", "b")]
    assert inputs_sha256([("u", "b")]) != inputs_sha256([("u", "c")])
    assert votes().chosen() == [("u", "a"), ("v", "a"), ("w", "b")]


def test_the_scorer_gets_the_votes_beside_each_candidate():
    history = Sequence("u", ("a",), (), (None,), ("",))
    shape = PromptShape(shared_temperature=0.5, shared_smoothing=0.25)
    chosen = CandidateSet("u#1", "test", ("c", "b"), 0)
    (example,) = examples_of_sets(
        [chosen],
        {"u": Sequence("u", ("a", "c"), (), (None, None), ("", ""))},
        ITEMS,
        {"u#1": Thought("east", 0.5)},
        shape,
        lambda prompt: True,
        votes(),
    )
    expected = votes().evidence("east", ["c", "b"], user_id="u", **WIDTH)
    assert [value for (value,) in example.features] == expected
    silent = scorer_example(history, ITEMS, ["c"], Thought("east", 0.5), PromptShape(), lambda prompt: True)
    assert silent.features == ()
    with pytest.raises(ValueError, match="give the rationales that vote"):
        scorer_example(history, ITEMS, ["c"], Thought("east", 0.5), shape, lambda prompt: True)
