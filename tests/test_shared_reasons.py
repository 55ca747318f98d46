"""Votes of shared reasons: hand-computed values, and what they may not depend on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from pulse_hf.reasoning.examples import NO_THOUGHT, PromptShape, Thought, examples_of_sets, scorer_example
from pulse_hf.reasoning.shared_reasons import SharedReasons, chosen_for, inputs_sha256
from pulse_hf.schema import CandidateSet, Item, Sequence

ITEMS = {name: Item(name, f"title {name}", f"title {name}") for name in "abc"}
PLACES = {name: place for place, name in enumerate(ITEMS)}
POINTS = {"east": [1.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}
WIDTH = {"temperature": 0.5, "smoothing": 0.25}
EAST, NORTH = (np.array(POINTS[name], dtype=np.float32) for name in ("east", "north"))


class Space:
    """A plane with three reasons; a behaviour points where the last word of its text points."""

    config = SimpleNamespace(max_events=2, review_words=4)

    def __init__(self):
        self.read = []

    def encode_rationales(self, texts):
        self.read.append(list(texts))
        return np.array([POINTS[text] for text in texts])

    def encode_histories(self, texts):
        self.read.append(list(texts))
        return np.array([POINTS[text.split()[-1]] for text in texts])


def voting(users=("u", "v", "w"), space=None):
    """Two rationales for a (east, north), one for b (west), none for c."""
    vectors = np.array([POINTS["east"], POINTS["north"], POINTS["west"]], dtype=np.float32)
    return SharedReasons(vectors, np.array([0, 0, 1]), PLACES, space or Space(), users)


def history(user_id, *words):
    return Sequence(user_id, ("a",) * len(words), (), (None,) * len(words), tuple(words))


def test_evidence_by_hand():
    support = {"a": 1 + math.exp(-2), "b": math.exp(-4), "c": 0.0}
    mean = sum(support.values()) / 3
    expected = [math.log((support[name] / mean + 0.25) / 1.25) for name in "abc"]
    assert voting().evidence(EAST, ["a", "b", "c"], **WIDTH) == pytest.approx(expected, abs=1e-6)


def test_evidence_depends_neither_on_order_nor_on_company():
    together = dict(zip("cab", voting().evidence(NORTH, list("cab"), **WIDTH), strict=True))
    for name in "abc":
        assert voting().evidence(NORTH, [name], **WIDTH) == [together[name]]


def test_a_persons_own_rationales_do_not_vote():
    without = SharedReasons(voting().vectors[1:], np.array([0, 1]), PLACES, Space())
    expected = without.evidence(EAST, list("abc"), **WIDTH)
    assert voting().evidence(EAST, list("abc"), user_id="u", **WIDTH) == pytest.approx(expected)
    assert voting().evidence(EAST, list("abc"), user_id="somebody new", **WIDTH) != pytest.approx(expected)


def test_a_persons_own_rationales_are_left_out_of_the_votes_on_that_persons_decisions():
    own, other = (
        voting().votes("east", history(user, "north"), ITEMS, list("abc"), **WIDTH) for user in ("u", "somebody new")
    )
    reason = voting().evidence(EAST, list("abc"), user_id="u", **WIDTH)
    behaviour = voting().evidence(NORTH, list("abc"), user_id="u", **WIDTH)
    assert own == list(zip(reason, behaviour, strict=True))
    assert own != other


def test_nothing_is_known_without_a_query_and_of_new_items_as_much_as_of_one_that_nobody_chose():
    assert voting().evidence(None, list("abc"), **WIDTH) == [0.0] * 3
    without = SharedReasons(np.eye(2, dtype=np.float32), np.array([0, 0]), PLACES, Space())
    new, chosen, unchosen = without.evidence(EAST, ["new", "a", "b"], **WIDTH)
    assert new == unchosen < 0 < chosen
    empty = SharedReasons(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), PLACES, Space())
    assert empty.evidence(EAST, ["a"], **WIDTH) == [0.0]
    assert voting(users=("u", "u", "u")).evidence(EAST, ["a"], user_id="u", **WIDTH) == [0.0]


def test_a_reason_and_the_behaviour_vote_side_by_side():
    found = voting().votes("east", history("new", "west", "north"), ITEMS, ["b", "a"], **WIDTH)
    reason, behaviour = voting().evidence(EAST, ["b", "a"], **WIDTH), voting().evidence(NORTH, ["b", "a"], **WIDTH)
    assert found != list(zip(reason, behaviour, strict=True))  # b_u begins with the latest event, so "west" is last
    found = voting().votes("east", history("new", "north", "west"), ITEMS, ["b", "a"], **WIDTH)
    assert found == list(zip(reason, behaviour, strict=True))
    silent = voting().votes(None, history("new", "north", "west"), ITEMS, ["b", "a"], **WIDTH)
    assert silent == [(0.0, value) for value in behaviour]


def test_texts_are_encoded_once_and_together():
    space = Space()
    shared = voting(space=space)
    shared.read(["east", "", "north", "east"], ["goes west"])
    shared.read(["north"], ["goes west", ""])
    assert space.read == [["east", "north"], ["goes west"]]


def test_what_is_forgotten_while_it_votes_is_an_error_and_never_no_evidence():
    class Interrupted(Space):
        def encode_histories(self, texts):
            shared.forget(beyond=0)  # as another thread would
            return super().encode_histories(texts)

    shared = voting(space=Interrupted())
    with pytest.raises(RuntimeError, match="one thread"):
        shared.votes("east", history("new", "north", "west"), ITEMS, ["b", "a"], **WIDTH)
    assert shared.votes(None, history("new", "north", "west"), ITEMS, ["b"], **WIDTH)[0][0] == 0.0
    assert shared.votes("east", history("new"), ITEMS, ["b"], **WIDTH)[0][1] == 0.0  # who has told nothing yet


def test_a_vector_without_an_item_is_refused():
    with pytest.raises(ValueError, match="3 vectors for 2 items"):
        SharedReasons(voting().vectors, np.array([0, 1]), PLACES, Space())


def test_who_chose_what_comes_from_the_sequences():
    sequences = {"u": Sequence("u", ("a", "b", "c"), (), (None,) * 3, ("",) * 3)}
    rows = [{"user_id": "u", "position": 1, "status": "ok"}, {"user_id": "u", "position": 2, "status": "empty"}]
    assert chosen_for(rows, sequences) == [("u", "b")]
    assert inputs_sha256([("u", "b")]) != inputs_sha256([("u", "c")])
    assert voting().chosen() == [("u", "a"), ("v", "a"), ("w", "b")]


def test_the_scorer_gets_the_votes_beside_each_candidate():
    shape = PromptShape(shared_temperature=0.5, shared_smoothing=0.25)
    owner = Sequence("u", ("a", "c"), (), (None, None), ("west", "no target word"))
    (example,) = examples_of_sets(
        [CandidateSet("u#1", "test", ("c", "b"), 0)],
        {"u": owner},
        ITEMS,
        {"u#1": Thought("east", 0.5)},
        shape,
        lambda prompt: True,
        voting(),
    )
    assert list(example.features) == voting().votes("east", owner.before(1), ITEMS, ["c", "b"], **WIDTH)
    assert len(shape.features) == len(example.features[0]) == 2
    plain = scorer_example(owner.before(1), ITEMS, ["c"], Thought("east", 0.5), PromptShape(), lambda prompt: True)
    assert plain.features == ()
    assert PromptShape().features == ()
    with pytest.raises(ValueError, match="give the rationales that vote"):
        scorer_example(owner.before(1), ITEMS, ["c"], NO_THOUGHT, shape, lambda prompt: True)


def test_titles_stand_beside_the_votes_where_the_shape_asks_for_them():
    items = {name: Item(name, point, point) for name, point in zip("abc", POINTS, strict=True)}
    space = Space()
    past = Sequence("u", ("a",), (), (None,), ("all north",))
    rows = voting(space=space).votes("east", past, items, ["a", "b", "c"], **WIDTH, titles=True)
    assert [row[:2] for row in rows] == voting().votes("east", past, items, ["a", "b", "c"], **WIDTH)
    assert [row[2] for row in rows] == pytest.approx([1.0, 0.0, -1.0])  # r* points east
    assert [row[3] for row in rows] == pytest.approx([0.0, 1.0, 0.0])  # b_u points north
    (alone,) = voting().votes("east", past, items, ["b"], **WIDTH, titles=True)
    assert alone == rows[1]
    silent = voting().votes(None, past, items, ["a", "b", "c"], **WIDTH, titles=True)
    assert [row[2] for row in silent] == [0.0, 0.0, 0.0]
    shape = PromptShape(shared_temperature=0.5, title_agreement=True)
    assert len(shape.features) == len(rows[0])
    assert PromptShape(title_agreement=True).features == ()
