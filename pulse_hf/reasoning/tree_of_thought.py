"""Tree of Thought over reasons (paper §4.2): generate, evaluate, select, level by level for many users.

The root is the base reason, written greedily. Every node is refined ``width`` times, down to ``depth``;
the best leaf is the thought. Who measures agreement is an argument, so nothing here knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from typing import Literal

from pulse_hf.reasoning.generator import Generation, Generator, Sampling, with_room
from pulse_hf.reasoning.parsing import parse_reason
from pulse_hf.reasoning.prompts import Message, Prompt, refine_message
from pulse_hf.schema import stable_hash

Selection = Literal["thought-space", "likelihood", "random"]
SELECTIONS: tuple[Selection, ...] = ("thought-space", "likelihood", "random")
NO_NODE = -1
MAX_NODES = 1000

Evaluate = Callable[[list[tuple[str, str]]], list[float]]
"""Takes ``(prompt key, reason)`` pairs, returns the agreement of each reason with that user's behaviour."""


@dataclass(frozen=True)
class TreeSettings:
    """The shape of a tree and the choice of its leaf.

    Args:
        depth: Levels of refinement under the base reason; 0 leaves the base reason (paper: 2).
        width: Refinements of every node (lost in the paper's text; ours).
        keep: Nodes of a level that are refined, the best ones; ``None`` refines all (paper).
        selection: ``"thought-space"``: highest agreement (paper Eq. 2); ``"likelihood"``: highest mean token
            log-probability; ``"random"``: by a stable hash (the paper's ablations).

    Raises:
        ValueError: A value is out of range, or a tree would have more than 1,000 nodes.
    """

    depth: int = 2
    width: int = 2
    keep: int | None = None
    selection: Selection = "thought-space"

    def __post_init__(self) -> None:
        if self.depth < 0 or self.width < 1 or (self.keep is not None and self.keep < 1):
            raise ValueError(
                f"depth {self.depth}, width {self.width}, keep {self.keep}: expected depth >= 0, width and keep >= 1"
            )
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection is {self.selection!r}; expected one of {', '.join(SELECTIONS)}")
        if self.num_nodes > MAX_NODES:
            raise ValueError(
                f"depth {self.depth} and width {self.width} make {self.num_nodes:,} nodes a tree or more; "
                f"the most is {MAX_NODES:,}"
            )

    @property
    def num_nodes(self) -> int:
        """Nodes of one tree, the base reason included."""
        nodes = level = 1
        for _ in range(self.depth):
            level = self.width * (level if self.keep is None else min(level, self.keep))
            nodes += level
            if nodes > MAX_NODES:
                break
        return nodes


@dataclass(frozen=True, slots=True)
class Node:
    """One reason of a tree.

    Args:
        number: Place in the tree, counted level by level; the root is 0.
        parent: The node it refines, -1 for the root.
        depth: 0 for the root.
        status: ``"ok"`` or why the text failed (see ``parsing``).
        text: The reason, ``""`` if it failed.
        raw: What the engine wrote.
        log_likelihood: Mean token log-probability of the raw text.
        agreement: Agreement with the user's behaviour in [-1, 1]; ``None`` if the text failed
            or there is no behaviour yet.
        repaired: Whether the end had to be trimmed.
    """

    number: int
    parent: int
    depth: int
    status: str
    text: str
    raw: str
    log_likelihood: float
    agreement: float | None = None
    repaired: bool = False


@dataclass
class Tree:
    """All reasons of one prompt and the one chosen.

    Args:
        prompt: The prompt of the base reason.
        nodes: Level by level.
        leaf: Number of the chosen node, -1 if every reason failed.
    """

    prompt: Prompt
    nodes: list[Node] = field(default_factory=list)
    leaf: int = NO_NODE

    @property
    def chosen(self) -> Node | None:
        """The chosen node."""
        return None if self.leaf == NO_NODE else self.nodes[self.leaf]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A conversation waiting for replies: those become children of ``parent``."""

    tree: Tree
    parent: int
    messages: tuple[Message, ...]


def grow_trees(
    prompts: Series[Prompt],
    generator: Generator,
    evaluate: Evaluate,
    settings: TreeSettings,
    sampling: Sampling,
    seed: int,
) -> list[Tree]:
    """Grow one tree per prompt and choose its leaf.

    Failed nodes keep their raw text and are refined like the others, but never chosen: the choice is
    among the good leaves, else among the good nodes of the deepest level that has any.

    Args:
        prompts: Prompts of the base reasons; their keys must differ. One that leaves no room for a reply loses its
            oldest events.
        generator: Writes.
        evaluate: Measures agreement.
        settings: Shape and selection.
        sampling: How refinements are drawn; the base reason is always greedy.
        seed: Seeds refinements and breaks ties.

    Returns:
        One tree per prompt, in order.

    Raises:
        ValueError: Two prompts share a key, or the evaluator does not return one finite number per reason.
    """
    if len({prompt.key for prompt in prompts}) < len(prompts):
        raise ValueError("two prompts have the same key; every tree needs a key of its own")
    trees = [Tree(prompt) for prompt in with_room(prompts, generator, sampling.max_new_tokens)]
    turns = [_Turn(tree, NO_NODE, tree.prompt.messages) for tree in trees]
    for depth in range(settings.depth + 1):
        replies = generator.generate(
            [_prompt(turn) for turn in turns],
            width=settings.width if depth else 1,
            sampling=sampling if depth else replace(sampling, temperature=0.0),
            seed=seed,
        )
        grown = [
            (turn, _add_node(turn, depth, generation))
            for turn, generations in zip(turns, replies, strict=True)
            for generation in generations
        ]
        _measure([(turn.tree, number) for turn, number in grown], evaluate)
        turns = _turns_of_kept(grown, settings, seed) if depth < settings.depth else []
    for tree in trees:
        tree.leaf = leaf_of(tree.nodes, settings, tree.prompt.key, seed)
    return trees


def _prompt(turn: _Turn) -> Prompt:
    start = turn.tree.prompt
    key = start.key if turn.parent == NO_NODE else f"{start.key}/{turn.parent}"
    return Prompt(key, turn.messages, start.evidence)


def _add_node(turn: _Turn, depth: int, generation: Generation) -> int:
    parsed, number = parse_reason(generation), len(turn.tree.nodes)
    turn.tree.nodes.append(
        Node(
            number=number,
            parent=turn.parent,
            depth=depth,
            status=parsed.status,
            text=parsed.text,
            raw=generation.text,
            log_likelihood=generation.log_likelihood,
            repaired=parsed.repaired,
        )
    )
    return number


def _measure(places: list[tuple[Tree, int]], evaluate: Evaluate) -> None:
    """Set the agreement of all good nodes of a level."""
    good = [(tree, number) for tree, number in places if tree.nodes[number].status == "ok"]
    if not good:
        return
    values = evaluate([(tree.prompt.key, tree.nodes[number].text) for tree, number in good])
    if len(values) != len(good):
        raise ValueError(f"the evaluator returned {len(values)} agreements for {len(good)} reasons")
    for (tree, number), value in zip(good, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{tree.prompt.key}, node {number}: the agreement is {value}; expected a finite number")
        tree.nodes[number] = replace(tree.nodes[number], agreement=float(value))


def _turns_of_kept(grown: list[tuple[_Turn, int]], settings: TreeSettings, seed: int) -> list[_Turn]:
    """The next level's conversations: each kept node with the request to refine it."""
    levels: dict[str, list[tuple[_Turn, Node]]] = {}
    for turn, number in grown:
        levels.setdefault(turn.tree.prompt.key, []).append((turn, turn.tree.nodes[number]))
    turns = []
    for key, level in levels.items():
        best = ranked([node for _, node in level], settings.selection, key, seed)[: settings.keep]
        kept = {node.number for node in best}
        for turn, node in level:
            if node.number in kept:
                reply = {"role": "assistant", "content": node.raw}
                turns.append(_Turn(turn.tree, node.number, (*turn.messages, reply, refine_message())))
    return turns


def ranked(nodes: Series[Node], selection: Selection, key: str, seed: int) -> list[Node]:
    """Nodes from best to worst; failed ones last, equal ones by a stable hash.

    Args:
        nodes: Some nodes of one tree.
        selection: What is best.
        key: The tree's prompt key.
        seed: Breaks ties.

    Example:
        >>> nodes = [Node(n, 0, 1, "ok", "t", "t", -n, s) for n, s in ((1, 0.2), (2, 0.7))]
        >>> [node.number for node in ranked(nodes, "thought-space", "u#1", 0)]
        [2, 1]
        >>> [node.number for node in ranked(nodes, "likelihood", "u#1", 0)]
        [1, 2]
    """

    def order(node: Node) -> tuple[bool, float, int]:
        value = {"thought-space": node.agreement, "likelihood": node.log_likelihood, "random": 0.0}[selection]
        return node.status == "ok", -math.inf if value is None else value, stable_hash("node", seed, key, node.number)

    return sorted(nodes, key=order, reverse=True)


def leaf_of(nodes: Series[Node], settings: TreeSettings, key: str, seed: int) -> int:
    """The number of the node that is chosen: the best good one of the deepest level that has any; -1 if none is good.

    Args:
        nodes: All nodes of one tree.
        settings: Depth and selection.
        key: The tree's prompt key.
        seed: Breaks ties.
    """
    for depth in range(settings.depth, -1, -1):
        good = [node for node in nodes if node.depth == depth and node.status == "ok"]
        if good:
            return ranked(good, settings.selection, key, seed)[0].number
    return NO_NODE
