"""Panels of the page as markup: ranking, reason, map, rationales. Data enters through ``inert`` only."""

from __future__ import annotations

from collections.abc import Sequence

from answers import Answer, Answers, Move
from markup import inert, signed
from pictures import Mark, map_picture, tree_picture
from rationale_table import RationalePage

SHOWN = 10


def empty(sentence: str) -> str:
    """A panel that has nothing to show yet, and says what to do."""
    return f'<div class="pulse-empty"><p>{sentence}</p></div>'


def notice(heading: str, sentence: str, fraction: float | None = None) -> str:
    """A page-wide message, with a bar where something is under way."""
    bar = ""
    if fraction is not None:
        done = max(0, min(100, round(100 * fraction)))
        bar = (
            f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{done}"><i style="width:{max(done, 2)}%"></i></div>'
        )
    return (
        f'<section class="pulse-notice" role="status"><h2>{inert(heading)}</h2><p>{inert(sentence)}</p>{bar}</section>'
    )


def agreement_panel(answer: Answer) -> str:
    """How well the reason agrees with the history, as a word, a number and a bar."""
    origin = {None: "drafted from the history", "": "no reason: ranked by the history alone"}.get(
        answer.own, "your own words"
    )
    if answer.agreement is None:
        return f'<div class="pulse-agree"><span class="origin">{origin}</span></div>'
    word = next(
        word for least, word in ((0.6, "well"), (0.3, "partly"), (-1.1, "hardly")) if answer.agreement >= least
    )
    return (
        f'<div class="pulse-agree"><span class="origin">{origin}</span>'
        f'<span class="value">agrees {word} with the history: <b>{signed(answer.agreement)}</b></span>'
        f'<span class="meter" aria-hidden="true"><i style="width:{100 * max(0.0, answer.agreement):.0f}%"></i></span>'
        "</div>"
    )


def ranking_panel(moved: Sequence[Move], compared: bool) -> str:
    """The ranked items, the first ten open and the rest folded, with what rose and fell."""
    if not moved:
        return empty("There is nothing to rank.")
    high, low = moved[0].item.score, moved[-1].item.score
    rows = [_row(move, (move.item.score - low) / max(high - low, 1e-9), compared) for move in moved]
    rest = ""
    if len(rows) > SHOWN:
        rest = (
            f"<details><summary>All {len(rows)} candidates</summary>"
            f'<ol class="pulse-ranking" start="{SHOWN + 1}">{"".join(rows[SHOWN:])}</ol></details>'
        )
    head = '<div class="pulse-head" aria-hidden="true"><span></span><span>Item</span><span>Score</span></div>'
    return (
        f'{_summary(moved) if compared else ""}{head}<ol class="pulse-ranking">{"".join(rows[:SHOWN])}</ol>{rest}'
        '<p class="pulse-note">Scores are the model’s raw logits; they compare items within one ranking.</p>'
    )


def _row(move: Move, share: float, compared: bool) -> str:
    return (
        f'<li class="{_direction(move.change) if compared else "stay"}"><span class="rank">{move.rank}</span>'
        f'<span class="title">{inert(move.item.title)}</span>'
        f'<span class="move">{_badge(move.change) if compared else ""}</span>'
        f'<span class="score">{signed(move.item.score)}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{100 * share:.0f}%"></i></span></li>'
    )


def _direction(change: int | None) -> str:
    return "new" if change is None else "rise" if change > 0 else "fall" if change < 0 else "stay"


def _badge(change: int | None) -> str:
    if change is None:
        return '<span class="badge">new</span>'
    word, arrow = ("rose", "▲") if change > 0 else ("fell", "▼")
    count = abs(change)
    seen, told = (f"{arrow} {count}", f"{word} {count} place{'s' * (count > 1)}") if change else ("=", "stayed")
    return f'<span class="badge"><span aria-hidden="true">{seen}</span><span class="pulse-unseen">{told}</span></span>'


def _summary(moved: Sequence[Move]) -> str:
    known = [move for move in moved if move.change is not None]
    rose = [move for move in known if (move.change or 0) > 0]
    fell = [move for move in known if (move.change or 0) < 0]
    if not rose and not fell:
        text = f"Nothing moved among the {len(known)} candidates of both rankings."
    else:
        up, down = max(rose, key=lambda move: move.change or 0), min(fell, key=lambda move: move.change or 0)
        highest, lowest = (inert(move.item.title) for move in (up, down))
        text = (
            f'Since the ranking before, <span class="rise">{len(rose)} rose</span> and '
            f'<span class="fall">{len(fell)} fell</span> of {len(known)} candidates in both. Furthest up: '
            f"{highest} (▲ {up.change}). Furthest down: {lowest} (▼ {-(down.change or 0)})."
        )
    return f'<p class="pulse-moves" role="status">{text}</p>'


def tree_panel(answer: Answer) -> str:
    """The picture of the tree, or a sentence where nothing was drafted."""
    if answer.tree.chosen is None:
        return empty("No usable reason was drafted for this history; it is ranked without one.")
    return (
        '<p class="pulse-note">The model drafts a reason, refines it, and keeps the leaf that agrees best with the '
        f"history.</p>{tree_picture(answer.tree)}"
    )


def map_panel(answers: Answers, answer: Answer) -> str:
    """Where the history and its thoughts lie, and the stored reasons nearest to them."""
    if answers.map is None or answer.behaviour is None:
        return empty("This recommender holds no stored reasons, so there is no map to draw.")
    told = [answers.told(one) for one in answer.neighbours]
    near = [
        Mark(one.place, "neighbour", title, words) for one, (title, words) in zip(answer.neighbours, told, strict=True)
    ]
    kinds = {answer.tree.leaf: ("chosen", "The chosen thought")}
    thoughts = [
        Mark(place, *kinds.get(number, ("thought", "Another thought")), answer.tree.nodes[number].text)
        for number, place in answer.reasons.items()
    ]
    thoughts.sort(key=lambda mark: mark.kind == "chosen")
    marks = [*near, *thoughts, Mark(answer.behaviour, "history", "This history", f"{len(answer.history)} choices")]
    if answer.given is not None:
        marks.append(Mark(answer.given, "own", "Your reason", answer.own or ""))
    legend = [("history", "this history"), ("chosen", "chosen thought"), ("thought", "other thoughts")]
    legend += [("own", "your reason")] if answer.given is not None else []
    legend += [("neighbour", "nearest stored reasons"), ("cloud", "all stored reasons")]
    keys = "".join(f'<span class="key"><i class="{kind}"></i>{word}</span>' for kind, word in legend)
    rows = "".join(
        f'<li><span class="title">{inert(title)}</span><span class="value">{signed(one.cosine)}</span>'
        f'<span class="words">{inert(words)}</span></li>'
        for one, (title, words) in zip(answer.neighbours, told, strict=True)
    )
    unknown = (
        "" if any(words for _, words in told) else " Only what was chosen for them is published, not their words."
    )
    of = "the history" if answer.own == "" else "your reason" if answer.own else "the chosen thought"
    return (
        f'<div class="pulse-legend">{keys}</div>{map_picture(answers.map.background, marks)}'
        f'<p class="pulse-note">Two of {answers.map.vectors.shape[1]} dimensions, chosen to show most of the spread '
        f"({answers.map.share:.0%}); nearness is measured in all of them.{unknown}</p>"
        f'<h3 class="pulse-h3">Stored reasons nearest to {of}</h3><ol class="pulse-near">{rows}</ol>'
    )


def rationales_panel(found: RationalePage, source: str) -> str:
    """One page of the rationale dataset."""
    if not found.rows:
        return empty("No rationale holds these words. Try fewer or other ones.")
    rows = "".join(
        f'<li><span class="title">{inert(title)}</span><span class="words">{inert(text)}</span></li>'
        for title, text in found.rows
    )
    return (
        f'<p class="pulse-note">{found.found:,} rationales, page {found.page:,} of {found.pages:,}. '
        f"From {inert(source)}; written by a model, not facts about a person.</p>"
        f'<ol class="pulse-rationales">{rows}</ol>'
    )
