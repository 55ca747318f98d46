"""Every planted leak really leaks, and leaves the honest study as it was."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pulse_hf.artifacts import read_table
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.reasoning.examples import load_thoughts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import leak_worth  # noqa: E402


@pytest.fixture(scope="module")
def honest(small_run):
    study = load_study(small_run)
    return study, study.split("test")[:12], load_thoughts(small_run)


@pytest.fixture(autouse=True)
def nothing_of_the_honest_study_changes(honest):
    study, decisions, _ = honest
    before = study.candidates(decisions), len(study.shared.vectors), len(study.shared.user_ids)
    told = [study.shared.told(history, study.items) for history in study.histories(decisions)]
    yield
    assert (study.candidates(decisions), len(study.shared.vectors), len(study.shared.user_ids)) == before
    assert [study.shared.told(history, study.items) for history in study.histories(decisions)] == told


def test_the_behaviour_begins_with_the_target_and_a_leaf_of_the_tree_is_chosen_by_it(honest):
    study, decisions, thoughts = honest
    changed, leaky = leak_worth.target_in_behaviour(study, decisions, thoughts)
    assert list(leaky) == [one.decision_id for one in decisions]
    nodes = read_table(study.run / "thoughts" / "trees.parquet").to_pylist()
    told = zip(leaky, study.histories(decisions), study.target_items(decisions), strict=True)
    for key, history, target in told:
        behaviour = changed.shared.told(history, study.items)
        assert behaviour.startswith(study.items[target].title)
        leaves = [row["text"] for row in nodes if (row["decision_id"], row["depth"], row["status"]) == (key, 1, "ok")]
        cosines = changed.shared.near(behaviour, leaves)
        assert leaky[key].reason == leaves[int(np.argmax(cosines))]
        assert leaky[key].agreement == pytest.approx(max(cosines), abs=1e-6)


def test_the_reason_is_written_for_the_target(honest):
    study, decisions, thoughts = honest
    _, leaky = leak_worth.rationale_at_test_time(study, decisions, thoughts)
    targets = dict(zip((one.decision_id for one in decisions), study.target_items(decisions), strict=True))

    def named(key, reason):
        words = {word for word in study.items[targets[key]].title.lower().split() if len(word) > 3}
        return len(words & set(reason.lower().replace(",", " ").replace(".", " ").split())) / max(1, len(words))

    leaked = np.mean([named(key, thought.reason) for key, thought in leaky.items()])
    assert leaked > np.mean([named(key, thoughts[key].reason or "") for key in leaky]) + 0.2


def test_rationales_of_test_choices_raise_the_evidence_for_the_target(honest):
    study, decisions, thoughts = honest
    changed, _ = leak_worth.rationales_of_test(study, decisions, thoughts)
    rose = []
    for history, target in zip(study.histories(decisions), study.target_items(decisions), strict=True):
        before, after = (
            one.shared.votes(None, history, study.items, [target], temperature=0.15, smoothing=0.3)[0][1]
            for one in (study, changed)
        )
        rose.append(after > before)
    assert np.mean(rose) > 0.8


def test_no_negative_is_like_the_target_and_the_target_stays(honest):
    study, decisions, thoughts = honest
    changed, _ = leak_worth.unlike_negatives(study, decisions, thoughts)
    assert changed.target_items(decisions) == study.target_items(decisions)
    index, vectors = study.item_index, study.item_vectors
    for items, target in zip(changed.candidates(decisions), study.target_items(decisions), strict=True):
        assert len(set(items)) == len(items)
        cosines = [vectors[index[item] - 1] @ vectors[index[target] - 1] for item in items if item != target]
        assert max(cosines) <= leak_worth.UNLIKE


def test_held_out_choices_of_similar_users_are_lent(honest, monkeypatch):
    study, decisions, thoughts = honest
    lent = {}

    def spy(ground, sequences, wanted, given):
        lent.update(given)
        return {}

    monkeypatch.setattr(leak_worth, "thoughts_again", spy)
    leak_worth.neighbours_future(study, decisions, thoughts)
    ever = {user: set(sequence.training().item_ids) for user, sequence in study.sequences.items()}
    rows = leak_worth.read_table(study.run / "sequential" / "neighbours.parquet").to_pylist()
    near = {row["decision_id"]: row["user_ids"] for row in rows}
    beyond = [item for key, (items,) in lent.items() for item in items if not any(item in ever[u] for u in near[key])]
    assert beyond
