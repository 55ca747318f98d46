"""The controls of a reason: which node of a tree each of them gives, by hand."""

from pulse_hf.evaluation import reasons
from pulse_hf.reasoning.examples import Thought
from pulse_hf.schema import Decision


def node(depth, text, likelihood, agreement=0.0):
    return {"depth": depth, "status": "ok", "text": text, "agreement": agreement, "log_likelihood": likelihood}


GROWN = {
    "u#3": [node(0, "root", -0.1), node(1, "calm and quiet", -2.0, 0.7), node(1, "a gift for a friend", -1.0, 0.2)],
    "v#3": [node(0, "only a root", -1.0, 0.4)],  # its refinements failed
}
DECISIONS = [Decision(user, 3, "test") for user in "uvw"]  # w has no usable node at all


def texts(chosen):
    return {key: thought.reason for key, thought in chosen.items()}


def test_the_base_reason_is_the_root_and_the_likeliest_leaf_is_no_root_while_there_are_leaves():
    assert texts(reasons.base_reasons(GROWN, DECISIONS)) == {"u#3": "root", "v#3": "only a root"}
    likely = reasons.likeliest_leaves(GROWN, DECISIONS)
    assert texts(likely) == {"u#3": "a gift for a friend", "v#3": "only a root"}
    assert likely["u#3"].agreement == 0.2  # each reason comes with its own agreement


def test_a_root_that_failed_leaves_no_base_reason():
    assert texts(reasons.base_reasons({"u#3": GROWN["u#3"][1:]}, DECISIONS)) == {}


def test_random_leaves_are_leaves_and_depend_on_the_seed_alone():
    drawn = [texts(reasons.random_leaves(GROWN, DECISIONS, seed))["u#3"] for seed in range(20)]
    assert set(drawn) == {"calm and quiet", "a gift for a friend"}
    assert drawn == [texts(reasons.random_leaves(GROWN, DECISIONS, seed))["u#3"] for seed in range(20)]


def test_another_users_reason_is_nobodys_own_and_each_is_used_once():
    decisions = [Decision(f"u{number}", 3, "test") for number in range(7)]
    thoughts = {one.decision_id: Thought(f"reason of {one.user_id}", 0.5) for one in decisions}
    swapped = reasons.another_users(decisions, thoughts, seed=0)
    assert swapped.keys() == thoughts.keys()
    assert all(swapped[key] != thoughts[key] for key in thoughts)
    assert sorted(texts(swapped).values()) == sorted(texts(thoughts).values())


def test_shuffled_words_are_the_same_words_with_the_same_agreement():
    thoughts = {f"u{n}#3": Thought(f"they want word{n} and calm for the evening", 0.5) for n in range(5)}
    thoughts["u5#3"] = Thought(None, None)
    decisions = [Decision(key[:-2], 3, "test") for key in thoughts]
    found = reasons.shuffled_words(decisions, thoughts, seed=0)
    for key, thought in thoughts.items():
        assert sorted((found[key].reason or "").split()) == sorted((thought.reason or "").split())
        assert found[key].agreement == thought.agreement
    assert all(found[f"u{n}#3"] != thoughts[f"u{n}#3"] for n in range(5))
    assert found["u5#3"] == thoughts["u5#3"]
    assert found == reasons.shuffled_words(decisions[::-1], thoughts, seed=0)  # each by itself
    assert found != reasons.shuffled_words(decisions, thoughts, seed=1)


def test_the_untuned_encoder_takes_the_leaf_nearest_to_the_behaviour():
    told = ["Kettle: so calm and quiet", "Cup: a present", "Tray: nothing"]
    near = reasons.nearest_leaves(GROWN, DECISIONS, told, "sentence-transformers/all-MiniLM-L6-v2")
    assert texts(near) == {"u#3": "calm and quiet", "v#3": "only a root"}
    told[0] = "Kettle: a gift my friend loved"
    near = reasons.nearest_leaves(GROWN, DECISIONS, told, "sentence-transformers/all-MiniLM-L6-v2")
    assert texts(near)["u#3"] == "a gift for a friend"
