"""The same answers for programs: documented endpoints of ``gradio_client``, and tools of MCP."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
from answers import Answer, Answers, Move, moves
from inputs import RefusedError, read_history, read_reason, whole_number
from source import Source

logger = logging.getLogger(__name__)

MAX_ITEMS = 100


def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
    """Errors become sentences: refusals as they are, all else a number that only the log explains."""

    @wraps(work)
    def careful(*args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except RefusedError as refusal:
            raise gr.Error(str(refusal), duration=8, print_exception=False) from None
        except gr.Error:
            raise
        except Exception:
            number = secrets.token_hex(4)
            logger.exception("error %s", number)
            raise gr.Error(
                f"Something went wrong here (error {number}). Please try again.", duration=8, print_exception=False
            ) from None

    return careful


def answers_of(source: Source) -> Answers:
    """The answers of a source that is ready.

    Raises:
        RefusedError: It is not.
    """
    if source.answers is None:
        raise RefusedError(f"{source.status.heading}. {source.status.sentence}")
    return source.answers


def endpoints(source: Source) -> list[Callable[..., Any]]:
    """Functions to publish; their docstrings are their documentation."""

    def recommend(history: list[str], reason: str = "", words: list[str] | None = None, k: int = 10) -> dict:
        """Rank items of the catalogue for a history, with the reason the ranking stands on.

        Args:
            history: Titles or item ids, oldest first, at most 50; titles outside the catalogue are welcome.
            reason: Rank by this reason instead of one that is drafted from the history.
            words: What the person said about each title, in the same order; may be shorter or left out.
            k: How many items, 1 to 100.
        """
        answers, many = answers_of(source), whole_number(k, "k", 1, MAX_ITEMS)
        answer = answers.answer(read_history(history, words), read_reason(reason) or None)
        return {**_reason(answer), "items": [_item(move) for move in moves(None, answer)[:many]]}

    def steer(history: list[str], reason: str, words: list[str] | None = None, k: int = 10) -> dict:
        """Rank by a reason of your own and tell how far every item rose or fell against the drafted reason.

        Args:
            history: Titles or item ids, oldest first, at most 50.
            reason: The reason to rank by; an empty one ranks by the history alone.
            words: What the person said about each title, in the same order; may be shorter or left out.
            k: How many items, 1 to 100.
        """
        answers, many = answers_of(source), whole_number(k, "k", 1, MAX_ITEMS)
        events, own = read_history(history, words), read_reason(reason)
        drafted = answers.answer(events)
        steered = answers.answer(events, own, drafted)
        items = [{**_item(move), "rose": move.change} for move in moves(drafted, steered)[:many]]
        return {**_reason(steered), "drafted": drafted.reason, "items": items}

    def explain(history: list[str], words: list[str] | None = None) -> dict:
        """Draft reasons for a history and give the whole tree of thoughts with its chosen leaf.

        Args:
            history: Titles or item ids, oldest first, at most 50.
            words: What the person said about each title, in the same order; may be shorter or left out.
        """
        tree = answers_of(source).answer(read_history(history, words)).tree
        names = ("number", "parent", "depth", "status", "text", "log_likelihood", "agreement")
        return {"chosen": tree.leaf, "nodes": [{name: getattr(node, name) for name in names} for node in tree.nodes]}

    def nearest_reasons(history: list[str], reason: str = "", words: list[str] | None = None) -> dict:
        """Place a history and its reason on the Thought Space map and name the stored reasons nearest to the reason.

        Args:
            history: Titles or item ids, oldest first, at most 50.
            reason: Your own reason instead of the drafted one.
            words: What the person said about each title, in the same order; may be shorter or left out.
        """
        answers = answers_of(source)
        answer = answers.answer(read_history(history, words), read_reason(reason) or None)
        place = answer.given if answer.given is not None else answer.reasons.get(answer.tree.leaf)
        near = []
        for one in answer.neighbours:
            title, text = answers.told(one)
            near.append({"title": title, "reason": text, "cosine": one.cosine, "place": one.place.tolist()})
        return {
            **_reason(answer),
            "history_place": None if answer.behaviour is None else answer.behaviour.tolist(),
            "reason_place": None if place is None else place.tolist(),
            "nearest": near,
        }

    def search_catalogue(query: str, limit: int = 20) -> list[dict]:
        """Find items by the words of their titles.

        Args:
            query: Words that the title must hold, in any order.
            limit: How many, 1 to 100.
        """
        found = answers_of(source).search(query, whole_number(limit, "limit", 1, MAX_ITEMS))
        return [{"item_id": item_id, "title": title} for item_id, title in found]

    def browse_rationales(query: str = "", page: int = 1) -> dict:
        """Leaf through the rationale dataset: what was chosen, and the reason written for the choice.

        Args:
            query: Words that the title or the reason must hold; empty for all.
            page: From 1.
        """
        rationales = answers_of(source).rationales
        if rationales is None:
            raise RefusedError(source.no_rationales)
        found = rationales.page(query, page)
        rows = [{"title": title, "reason": text} for title, text in found.rows]
        return {"page": found.page, "pages": found.pages, "found": found.found, "rows": rows}

    return [recommend, steer, explain, nearest_reasons, search_catalogue, browse_rationales]


def _reason(answer: Answer) -> dict[str, Any]:
    return {"reason": answer.reason, "agreement": answer.agreement}


def _item(move: Move) -> dict[str, Any]:
    return {"rank": move.rank, "item_id": move.item.item_id, "title": move.item.title, "score": move.item.score}
