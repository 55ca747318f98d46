"""The tree search, driven by scripted texts and hand-made agreements."""

import pytest

from pulse_hf.reasoning.generator import Generation, Sampling, ScriptedGenerator
from pulse_hf.reasoning.prompts import Evidence, Prompt, refine_message
from pulse_hf.reasoning.tree_of_thought import Node, TreeSettings, grow_trees, ranked
from pulse_hf.schema import stable_hash

SAMPLING = Sampling(16, temperature=0.8)


def prompt(key="u#3"):
    return Prompt(key, ({"role": "user", "content": f"why {key}?"},), Evidence(()))


def reason(name, log_likelihood=-1.0):
    return Generation(f"Reason: {name}.", log_likelihood, 4)


# u#3 has root r, children a b (nodes 1 2), leaves a1 a2 b1 b2 (nodes 3 4 5 6).
REPLIES = {
    "u#3": [reason("r")],
    "u#3/0": [reason("a", -0.5), reason("b", -2.0)],
    "u#3/1": [reason("a1", -3.0), reason("a2", -0.1)],
    "u#3/2": [reason("b1", -0.2), reason("b2", -0.3)],
}
AGREEMENT = {"r.": 0.99, "a.": 0.1, "b.": 0.4, "a1.": 0.3, "a2.": 0.2, "b1.": -0.5, "b2.": 0.7}


class Recorder(ScriptedGenerator):
    """Remembers what it was asked."""

    def generate(self, prompts, *, width, sampling, seed):
        self.calls = [*getattr(self, "calls", []), (list(prompts), width, sampling)]
        return super().generate(prompts, width=width, sampling=sampling, seed=seed)


def grow(settings=None, replies=REPLIES, agreement=AGREEMENT, prompts=None, seed=0, generator=None):
    evaluate = lambda pairs: [agreement[text] for _, text in pairs]  # noqa: E731
    generator = generator or ScriptedGenerator(replies)
    return grow_trees(prompts or [prompt()], generator, evaluate, settings or TreeSettings(), SAMPLING, seed)


def test_the_leaf_with_the_highest_agreement_is_chosen_never_an_inner_node():
    (tree,) = grow()
    assert [(node.number, node.parent, node.depth, node.text) for node in tree.nodes] == [
        (0, -1, 0, "r."),
        (1, 0, 1, "a."),
        (2, 0, 1, "b."),
        (3, 1, 2, "a1."),
        (4, 1, 2, "a2."),
        (5, 2, 2, "b1."),
        (6, 2, 2, "b2."),
    ]
    assert (tree.leaf, tree.chosen.text, tree.chosen.agreement) == (6, "b2.", 0.7)
    assert [node.agreement for node in tree.nodes] == [0.99, 0.1, 0.4, 0.3, 0.2, -0.5, 0.7]


def test_selection_by_likelihood_and_by_chance():
    assert grow(TreeSettings(selection="likelihood"))[0].leaf == 4
    chances = {grow(TreeSettings(selection="random"), seed=seed)[0].leaf for seed in range(40)}
    assert chances == {3, 4, 5, 6}
    assert (
        grow(TreeSettings(selection="random"), seed=7)[0].leaf
        == grow(TreeSettings(selection="random"), seed=7)[0].leaf
    )


def test_conversations_carry_the_whole_path_and_the_root_is_greedy():
    generator = Recorder(REPLIES)
    grow(generator=generator)
    (root, width, sampling), (_, width_1, sampling_1), (leaves, width_2, _) = generator.calls
    assert (width, sampling.temperature, width_1, sampling_1.temperature, width_2) == (1, 0.0, 2, 0.8, 2)
    assert root[0].key == "u#3"
    first = {"role": "assistant", "content": "Reason: r."}
    second = {"role": "assistant", "content": "Reason: b."}
    assert [made.key for made in leaves] == ["u#3/1", "u#3/2"]
    assert leaves[1].messages == (*prompt().messages, first, refine_message(), second, refine_message())


@pytest.mark.parametrize(
    ("depth", "width", "nodes"), [(0, 3, 1), (1, 1, 2), (1, 4, 5), (2, 3, 13), (3, 2, 15), (5, 1, 6)]
)
def test_any_depth_and_width(depth, width, nodes):
    settings = TreeSettings(depth, width)
    (tree,) = grow(
        settings, ScriptedGenerator({}, "Reason: r.").replies, generator=ScriptedGenerator({}, "Reason: r.")
    )
    assert len(tree.nodes) == nodes == settings.num_nodes
    assert tree.chosen.depth == depth
    assert max(node.depth for node in tree.nodes) == depth


def test_a_beam_refines_only_the_best_of_each_level():
    (tree,) = grow(TreeSettings(keep=1))
    assert [node.text for node in tree.nodes] == ["r.", "a.", "b.", "b1.", "b2."]
    assert tree.nodes[3].parent == 2
    assert TreeSettings(keep=1).num_nodes == 5
    (tree,) = grow(TreeSettings(keep=1, selection="likelihood"))
    assert [node.text for node in tree.nodes] == ["r.", "a.", "b.", "a1.", "a2."]


def test_failed_nodes_are_kept_with_their_text_but_never_chosen():
    replies = REPLIES | {"u#3/2": [reason("b1"), "no marker here"]}
    (tree,) = grow(replies=replies)
    failed = tree.nodes[6]
    assert (failed.status, failed.text, failed.raw, failed.agreement) == ("no_marker", "", "no marker here", None)
    assert tree.leaf == 3
    assert grow(TreeSettings(selection="likelihood"), replies=replies)[0].leaf == 4
    for seed in range(20):
        assert grow(TreeSettings(selection="random"), replies=replies, seed=seed)[0].leaf != 6


def test_children_of_a_failed_node_can_still_win():
    (tree,) = grow(replies=REPLIES | {"u#3/0": [reason("a"), "broken"]})
    assert tree.nodes[2].status == "no_marker"
    assert tree.chosen.text == "b2."


def test_without_a_good_leaf_the_best_of_the_deepest_good_level_is_taken():
    dead = {"u#3/1": ["broken"], "u#3/2": [""]}
    (tree,) = grow(replies=REPLIES | dead)
    assert (tree.leaf, tree.chosen.text) == (2, "b.")
    (tree,) = grow(replies=REPLIES | dead | {"u#3/0": ["broken"]})
    assert tree.leaf == 0
    (tree,) = grow(replies={}, agreement={})
    assert (tree.leaf, tree.chosen) == (-1, None)
    assert {node.status for node in tree.nodes} == {"empty"}


def test_ties_are_broken_by_a_stable_hash_not_by_order():
    level = dict.fromkeys(AGREEMENT, 0.5)
    leaves = {grow(agreement=level, seed=seed)[0].leaf for seed in range(40)}
    assert leaves == {3, 4, 5, 6}
    expected = max((3, 4, 5, 6), key=lambda number: stable_hash("node", 0, "u#3", number))
    assert grow(agreement=level)[0].leaf == expected
    nodes = [Node(number, 0, 1, "ok", "t", "t", -1.0, 0.5) for number in range(5)]
    assert ranked(nodes, "thought-space", "k", 0) == ranked(nodes[::-1], "thought-space", "k", 0)


def test_trees_do_not_depend_on_their_company():
    other = {key.replace("u#3", "v#9"): value for key, value in REPLIES.items()}
    replies = REPLIES | other
    together = grow(replies=replies, prompts=[prompt("v#9"), prompt()])
    assert [node.text for node in together[1].nodes] == [node.text for node in grow()[0].nodes]
    assert together[1].leaf == grow()[0].leaf
    with pytest.raises(ValueError, match="same key"):
        grow(prompts=[prompt(), prompt()])


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_an_evaluator_must_return_a_finite_number_for_every_reason(values):
    with pytest.raises(ValueError, match=r"evaluator|finite"):
        grow_trees([prompt()], ScriptedGenerator(REPLIES), lambda pairs: values, TreeSettings(depth=0), SAMPLING, 0)


@pytest.mark.parametrize(
    "values", [{"depth": -1}, {"width": 0}, {"keep": 0}, {"selection": "best"}, {"depth": 12, "width": 4}]
)
def test_impossible_trees_are_refused(values):
    with pytest.raises(ValueError, match=r"expected|nodes"):
        TreeSettings(**values)
