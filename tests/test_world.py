"""The embedded world: fair by construction, and pulse-nano never saw the held-out part."""

import re
from pathlib import Path

import numpy as np
import pytest

from pulse_hf.data.world.oracles import oracle_scores
from pulse_hf.data.world.shop import WorldSettings, full_lexicon, held_out_motives, make_world, training_lexicon
from pulse_hf.data.world.stage import load_truth, world
from pulse_hf.presets import preset_named
from pulse_hf.schema import CandidateSet, Sequence


@pytest.fixture(scope="module")
def shop():
    return make_world(WorldSettings(num_users=400), 3)


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def test_same_seed_same_world(shop):
    again = make_world(WorldSettings(num_users=400), 3)
    assert again == shop
    assert make_world(WorldSettings(num_users=400), 4).reviews != shop.reviews


def test_no_title_names_a_motive(shop):
    phrases = [phrase for motive in shop.truth["motives"].values() for phrase in motive]
    small = {
        "a",
        "and",
        "of",
        "in",
        "to",
        "the",
        "it",
        "as",
        "than",
        "for",
        "at",
        "on",
        "by",
        "with",
        "no",
        "big",
        "that",
    }
    naming = set().union(*(words(phrase) for phrase in phrases)) - small
    for name in shop.truth["motives"]:
        naming |= words(name) - small
    titles = set().union(*(words(item["title"]) for item in shop.items))
    assert titles & naming == set()


def test_every_item_serves_several_motives_and_every_motive_is_served(shop):
    served = np.array(shop.truth["served"])
    assert (served > 0).sum(axis=1).min() >= 2
    assert (served >= 1).sum(axis=0).min() > 10


def test_item_ids_tell_nothing(shop):
    popularity = np.array(shop.truth["popularity"])
    number = np.array([int(item_id[1:]) for item_id in shop.truth["item_ids"]])
    assert abs(np.corrcoef(popularity, number)[0, 1]) < 0.12
    kind = np.array(shop.truth["kind"])
    assert abs(np.corrcoef(kind, number)[0, 1]) < 0.12


def test_reviews_name_the_motive_at_work_as_often_as_the_knob_says(shop):
    named = []
    by_user = {}
    for row in shop.reviews:
        by_user.setdefault(row["user_id"], []).append(row)
    for user_id, rows in by_user.items():
        for row, motive in zip(rows, shop.truth["events"][user_id], strict=True):
            named.append(any(phrase.lower() in row["review"].lower() for phrase in shop.truth["motives"][motive]))
    assert np.mean(named) == pytest.approx(WorldSettings().own_words, abs=0.03)


def test_without_motives_the_two_oracles_rank_alike():
    quiet = make_world(WorldSettings(num_users=60, motive=0.0), 5)
    sequences, sets = sets_of(quiet)
    scores = oracle_scores(quiet.truth, sequences, sets)
    for with_motives, without in zip(scores["oracle-motives"], scores["oracle-no-motives"], strict=True):
        assert list(np.argsort(with_motives)) == list(np.argsort(without))


def test_knowing_the_motives_is_worth_much(shop):
    sequences, sets = sets_of(shop)
    scores = oracle_scores(shop.truth, sequences, sets)
    hits = {
        name: np.mean([np.argmax(row) == s.target_index for row, s in zip(rows, sets, strict=True)])
        for name, rows in scores.items()
    }
    assert hits["oracle-motives"] > 0.5
    assert hits["oracle-no-motives"] < 0.36


def test_the_oracle_knows_that_nobody_chooses_twice():
    """By hand: two motives, three items, the first is in the history; what it had goes to the others alike."""
    truth = {
        "item_ids": ["a", "b", "c"],
        "served": [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
        "kind": [0, 1, 2],
        "domain": [0, 0, 0],
        "popularity": [0.0, 0.0, 0.0],
        "weights": {"popularity": 0.0, "sequence": 0.0, "motive": 2.0},
        "first_motive_share": 0.5,
        "users": {"u": [0, 1]},
    }
    sequences = {"u": Sequence("u", ("a", "b"), (), (None,) * 2, ("",) * 2)}
    scores = oracle_scores(truth, sequences, [CandidateSet("u#1", "test", ("b", "c"), 0)])
    high, one = np.exp(2.0), 1.0
    expected = [0.5 * high / (high + one) + 0.5 * one / (one + high)] * 2
    assert scores["oracle-motives"][0].tolist() == pytest.approx(expected)
    assert sum(scores["oracle-motives"][0]) == pytest.approx(1.0)


def sets_of(shop):
    rng = np.random.default_rng(0)
    by_user = {}
    for row in shop.reviews:
        by_user.setdefault(row["user_id"], []).append(row["item_id"])
    sequences, sets = {}, []
    for user_id, ids in by_user.items():
        sequences[user_id] = Sequence(user_id, tuple(ids), (), (None,) * len(ids), ("",) * len(ids))
        others = [item for item in shop.truth["item_ids"] if item not in ids]
        chosen = [ids[-1], *rng.choice(others, 9, replace=False)]
        sets.append(CandidateSet(f"{user_id}#{len(ids) - 1}", "test", tuple(str(c) for c in chosen), 0))
    return sequences, sets


def test_the_training_lexicon_holds_none_of_the_held_out_part():
    full, seen = full_lexicon(), training_lexicon()
    held = set(held_out_motives())
    assert len(held) * 3 == len(full.motives)
    assert held.isdisjoint(seen.motives)
    assert len(seen.domains) == len(full.domains) - 1
    for kind in ("own", "other", "plain"):
        assert len(getattr(seen, kind)) * 2 == len(getattr(full, kind))
        assert set(getattr(seen, kind)) < set(getattr(full, kind))
    hidden = {
        phrase for name, group in zip(full.motives, full.phrases, strict=True) for phrase in group if name in held
    }
    assert hidden.isdisjoint(phrase for group in seen.phrases for phrase in group)


def test_the_stage_writes_raw_input_and_truth(tmp_path):
    folder = world(tmp_path, WorldSettings(num_users=12), seed=1)
    assert {path.name for path in folder.iterdir()} == {"reviews.jsonl", "items.jsonl", "truth.json", "manifest.json"}
    truth = load_truth(tmp_path)
    assert truth is not None
    assert len(truth["events"]) == 12
    assert load_truth(tmp_path / "nowhere") is None


def test_the_quickstart_asks_with_a_title_that_the_embedded_shop_has():
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (title,) = re.findall(r'history = \[\n    Event\("([^"]+)", rating', readme)
    demo = preset_named("demo")
    assert title in {item["title"] for item in make_world(demo.world, demo.seed).items}
