"""Pictures made here: the tree of thoughts as SVG and as a list to be read aloud, the map with marks that tell."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markup import inert, signed
from numpy.typing import NDArray

from pulse_hf.data.item_text import clean_text
from pulse_hf.reasoning.tree_of_thought import NO_NODE, Node, Tree

DRAWN_NODES = 60
LINE, CHAR, PAD, HEAD, GAP = 19.0, 7.8, 14.0, 26.0, 14.0  # SVG units; CHAR is the mean width of a letter
NARROW = 330.0
INDENT = 18.0
MAX_LINES = 9
_KINDS = {
    "history": "This history", "thought": "A thought", "chosen": "The chosen thought", "own": "Your reason",
    "neighbour": "A stored reason",
}  # fmt: skip


# -- the tree --------------------------------------------------------------------------------------


@dataclass
class _Card:
    node: Node
    lines: list[str]
    x: float
    y: float
    width: float

    @property
    def height(self) -> float:
        return HEAD + PAD + LINE * max(1, len(self.lines))


def tree_picture(tree: Tree) -> str:
    """The tree with its chosen branch, drawn for wide screens and for phones; the page shows one of them.

    Pictures are silent to a screen reader, so that the same is told by a list that is not seen.
    """
    if not tree.nodes:
        return ""
    nodes, left_out = _drawn(tree)
    branch = _branch(tree)
    wide = _svg(_columns(nodes), branch, tree.leaf) if max(n.depth for n in nodes) <= 2 else ""
    narrow = _svg(_outline(nodes, NARROW), branch, tree.leaf)
    more = f'<p class="pulse-note">{left_out} more reasons are not drawn.</p>' if left_out else ""
    if not wide:
        wide = _svg(_outline(nodes, 2 * NARROW), branch, tree.leaf)
    return (
        f'<div class="pulse-tree"><div class="pulse-unseen">{_list(nodes, NO_NODE, tree.leaf)}</div>'
        f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>{more}</div>'
    )


def _drawn(tree: Tree) -> tuple[list[Node], int]:
    """At most :data:`DRAWN_NODES` nodes, whole branches, the chosen one always among them."""
    if len(tree.nodes) <= DRAWN_NODES:
        return tree.nodes, 0
    kept = _branch(tree)
    for node in tree.nodes:  # level by level, so a parent comes before its children
        if len(kept) >= DRAWN_NODES:
            break
        if node.parent == NO_NODE or node.parent in kept:
            kept.add(node.number)
    return [node for node in tree.nodes if node.number in kept], len(tree.nodes) - len(kept)


def _branch(tree: Tree) -> set[int]:
    found, number = set(), tree.leaf
    while number != NO_NODE:
        found.add(number)
        number = tree.nodes[number].parent
    return found


def _children(nodes: Sequence[Node], number: int) -> list[Node]:
    return [node for node in nodes if node.parent == number]


def _list(nodes: Sequence[Node], parent: int, leaf: int) -> str:
    """The children of a node as a list, theirs inside it."""
    rows = [
        f"<li>{_kind(node, leaf)}: {inert(_words(node))} {_agreement(node)}{_list(nodes, node.number, leaf)}</li>"
        for node in _children(nodes, parent)
    ]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _columns(nodes: Sequence[Node]) -> list[_Card]:
    """Levels from left to right, every parent in the middle of its children."""
    deepest = max(node.depth for node in nodes)
    width = {0: 520.0, 1: 330.0}.get(deepest, 262.0)
    step = width + (64.0 if deepest < 2 else 44.0)
    cards: dict[int, _Card] = {}
    bottom = 0.0

    def place(node: Node) -> None:
        nonlocal bottom
        card = _Card(node, _wrapped(_words(node), width), node.depth * step, bottom, width)
        below = _children(nodes, node.number)
        start = bottom
        for child in below:
            place(child)
        if below:
            first, last = cards[below[0].number], cards[below[-1].number]
            card.y = max(start, (first.y + last.y + last.height - card.height) / 2)
        cards[node.number] = card
        bottom = max(bottom, card.y + card.height + GAP)

    for root in _children(nodes, NO_NODE):
        place(root)
    return [cards[node.number] for node in nodes]


def _outline(nodes: Sequence[Node], width: float) -> list[_Card]:
    """One below the other, children moved in."""
    cards: list[_Card] = []

    def place(node: Node, y: float) -> float:
        left = node.depth * INDENT
        card = _Card(node, _wrapped(_words(node), width - left), left, y, width - left)
        cards.append(card)
        y += card.height + GAP
        for child in _children(nodes, node.number):
            y = place(child, y)
        return y

    y = 0.0
    for root in _children(nodes, NO_NODE):
        y = place(root, y)
    return cards


def _svg(cards: list[_Card], branch: set[int], leaf: int) -> str:
    by_number = {card.node.number: card for card in cards}
    width = max(card.x + card.width for card in cards) + 4
    height = max(card.y + card.height for card in cards) + 4
    edges = [_edge(by_number[card.node.parent], card, branch) for card in cards if card.node.parent != NO_NODE]
    edges.sort(key=lambda edge: "chosen" in edge)  # the chosen branch is drawn on top
    drawn = "".join(edges) + "".join(_card(card, branch, leaf) for card in cards)
    return (
        f'<svg class="pulse-svg" aria-hidden="true" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="-2 -2 {width:.0f} {height:.0f}">{drawn}</svg>'
    )


def _edge(parent: _Card, child: _Card, branch: set[int]) -> str:
    css = "edge chosen" if child.node.number in branch else "edge"
    if child.x >= parent.x + parent.width:
        x1, y1 = parent.x + parent.width, parent.y + parent.height / 2
        x2, y2 = child.x, child.y + child.height / 2
        middle = (x1 + x2) / 2
        path = f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    else:
        x, y1, y2 = parent.x + INDENT / 2, parent.y + parent.height, child.y + child.height / 2
        path = f"M{x:.1f} {y1:.1f}V{y2:.1f}H{child.x:.1f}"
    return f'<path class="{css}" d="{path}"/>'


def _card(card: _Card, branch: set[int], leaf: int) -> str:
    node = card.node
    css = "card" + (" leaf" if node.number == leaf else " chosen" if node.number in branch else "")
    css += "" if node.status == "ok" else " failed"
    kind, agreement = _kind(node, leaf), _agreement(node)
    left, top = card.x + PAD, card.y + HEAD - 4
    lines = "".join(
        f'<text x="{left:.1f}" y="{top + LINE * (row + 1):.1f}">{inert(line)}</text>'
        for row, line in enumerate(card.lines)
    )
    return (
        f'<g class="{css}"><rect x="{card.x:.1f}" y="{card.y:.1f}" width="{card.width:.1f}" '
        f'height="{card.height:.1f}" rx="10"/><text class="kind" x="{left:.1f}" y="{top:.1f}">{kind}</text>'
        f'<text class="value" x="{card.x + card.width - PAD:.1f}" y="{top:.1f}" text-anchor="end">{agreement}</text>'
        f"{lines}</g>"
    )


def _kind(node: Node, leaf: int) -> str:
    kind = "Draft" if node.depth == 0 else f"Refinement {node.number}"
    return f"{kind} · chosen" if node.number == leaf else kind


def _agreement(node: Node) -> str:
    return "" if node.agreement is None else f"agrees {signed(node.agreement)}"


def _words(node: Node) -> str:
    return node.text if node.status == "ok" else f"Not usable ({node.status})."


def _wrapped(text: str, width: float) -> list[str]:
    """Lines that fit a card; wide characters count twice, a word longer than a line is broken."""
    room = int((width - 2 * PAD) / CHAR)
    lines, line, used = [], "", 0
    for word in clean_text(text, max_chars=600).split():
        for piece in _pieces(word, room):
            size = _columns_of(piece)
            if line and used + 1 + size > room:
                lines.append(line)
                line, used = "", 0
            line, used = (f"{line} {piece}", used + 1 + size) if line else (piece, size)
    lines = [*lines, line] if line else lines
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + " …"]


def _pieces(word: str, room: int) -> list[str]:
    pieces, piece, used = [], "", 0
    for sign in word:
        size = _columns_of(sign)
        if used + size > room:
            pieces.append(piece)
            piece, used = "", 0
        piece, used = piece + sign, used + size
    return [*pieces, piece]


def _columns_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


# -- the map ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A point of the map that tells something.

    Args:
        place: ``(2,)`` in [0, 1], second axis upward.
        kind: ``"history"``, ``"thought"``, ``"chosen"``, ``"own"`` or ``"neighbour"``.
        heading: Its first line on hover.
        words: The rest.
    """

    place: NDArray[np.float64]
    kind: str
    heading: str
    words: str


def map_picture(background: NDArray[np.float64], marks: Sequence[Mark]) -> str:
    """Stored reasons as a cloud, marks above it; each mark opens on hover, focus or touch."""
    # One path of round dots: thousands of points, one element.
    dots = "".join(f"M{1000 * x:.0f} {640 * (1 - y):.0f}h0" for x, y in background)
    drawn = "".join(_mark(mark, number) for number, mark in enumerate(marks))
    return (
        '<div class="pulse-map"><svg viewBox="-12 -12 1024 664" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="cloud" d="{dots}"/></svg>{drawn}</div>'
    )


def _mark(mark: Mark, number: int) -> str:
    x, y = (float(value) for value in mark.place)
    side = ("right" if x > 0.5 else "left") + (" under" if y > 0.5 else " over")
    left, top = (12 + 1000 * x) / 10.24, (12 + 640 * (1 - y)) / 6.64
    heading, words = inert(mark.heading), inert(mark.words)
    return (
        f'<span class="mark {mark.kind} {side}" tabindex="0" role="img" aria-label="{_KINDS[mark.kind]}" '
        f'aria-describedby="pulse-tip-{number}" style="left:{left:.2f}%;top:{top:.2f}%">'
        f'<span class="tip" role="tooltip" id="pulse-tip-{number}"><b>{heading}</b> {words}</span></span>'
    )
