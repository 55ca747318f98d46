"""What the Thought Space learns from: a history and the rationale of the choice that followed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pulse_hf import artifacts
from pulse_hf.reasoning.behaviour import NOTHING, behaviour_text, without_words
from pulse_hf.reasoning.titles import title_pairs
from pulse_hf.schema import Item, Sequence, fold_of, stable_hash

if TYPE_CHECKING:
    from pulse_hf.training.thought_space import ThoughtSpaceSettings

__all__ = [
    "Pair",
    "inputs_sha256",
    "latest_pairs",
    "next_title_pairs",
    "pair_texts",
    "training_pairs",
    "validation_pairs",
    "validation_users",
    "with_titles",
]


@dataclass(frozen=True, slots=True)
class Pair:
    """A training decision's history and positive rationale.

    Args:
        decision_id: Which decision.
        user_id: Whose.
        target_id: The chosen item.
        training_history: The text the history tower is trained on.
        history: The target-free text, as when serving.
        masked_history: The same without any word of the titles, the target's too.
        rationale: The positive rationale.
        masked_rationale: The same without those words.
    """

    decision_id: str
    user_id: str
    target_id: str
    training_history: str
    history: str
    masked_history: str
    rationale: str
    masked_rationale: str


def training_pairs(
    rationales: Iterable[Mapping[str, Any]],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    settings: ThoughtSpaceSettings,
) -> list[Pair]:
    """Join rationales with the histories that their decisions saw; the leak audit calls it, too.

    Args:
        rationales: Rows of table ``rationales``; rows whose ``status`` is not ``"ok"`` are left out.
        sequences: By user id.
        items: By item id.
        settings: ``behaviour``, ``max_events`` and ``review_words`` are used.

    Raises:
        ValueError: A row's target is not a training event, or its user is unknown.
    """
    return [_pair(row, sequences, items, settings) for row in rationales if row["status"] == "ok"]


def with_titles(
    pairs: Series[Pair],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    settings: ThoughtSpaceSettings,
) -> list[Pair]:
    """The pairs and, where the settings ask for it, choices once more with the chosen item's title for a rationale.

    A title is the barest answer to what was chosen. With titles in the space every candidate has a place in it.

    Args:
        pairs: Of the rationales.
        sequences: By user id.
        items: By item id.
        settings: ``titles``: those of the pairs; with ``all_titles`` those of all training choices, of which
            ``training_pairs_per_user`` of each user, the latest ones.
    """
    if not settings.titles:
        return list(pairs)
    if not settings.all_titles:
        twins = [replace(one, rationale=items[one.target_id].title, masked_rationale=NOTHING) for one in pairs]
        return [*pairs, *twins]
    from pulse_hf.data.sequences import decisions, training_decisions

    people, latest = sequences.values(), settings.training_pairs_per_user
    twins = []
    for one in training_decisions(people, latest) if latest else decisions(people, "train"):
        title = items[sequences[one.user_id].item_ids[one.position]].title
        pair = _pair({**asdict(one), "decision_id": one.decision_id, "text": title}, sequences, items, settings)
        twins.append(replace(pair, masked_rationale=NOTHING))
    return [*pairs, *twins]


def next_title_pairs(sequences: Series[Sequence], items: Mapping[str, Item], num_titles: int) -> list[Pair]:
    """What ``encoder-tuned`` learns from: the titles before each training choice, and the title chosen.

    Args:
        sequences: The users.
        items: By item id.
        num_titles: Titles of a history.
    """
    by_user = {sequence.user_id: sequence for sequence in sequences}
    return [
        Pair(one.decision_id, one.user_id, by_user[one.user_id].item_ids[one.position], *(text,) * 3, title, title)
        for one, text, title in title_pairs(sequences, items, num_titles)
    ]


def _pair(
    row: Mapping[str, Any],
    sequences: Mapping[str, Sequence],
    items: Mapping[str, Item],
    settings: ThoughtSpaceSettings,
) -> Pair:
    user_id, position = row["user_id"], row["position"]
    if user_id not in sequences:
        raise ValueError(f"rationale {row['decision_id']}: user {user_id!r} has no sequence; make both in one run.")
    sequence = sequences[user_id]
    if not 1 <= position < sequence.num_train:
        raise ValueError(
            f"rationale {row['decision_id']}: position {position} is not a training target with a history "
            f"(expected 1 to {sequence.num_train - 1}); rationales of other targets must not train anything."
        )
    history, target_id = sequence.before(position), sequence.item_ids[position]

    def told(target: str | None = None, *, with_titles: bool = True) -> str:
        return behaviour_text(
            history,
            items,
            target=target,
            max_events=settings.max_events,
            review_words=settings.review_words,
            with_titles=with_titles,
        )

    titles = [items[item_id].title for item_id in (target_id, *history.item_ids)]
    return Pair(
        decision_id=row["decision_id"],
        user_id=user_id,
        target_id=target_id,
        training_history=told(target_id) if settings.behaviour == "paper" else told(),
        history=told(),
        masked_history=without_words(told(with_titles=False), titles),
        rationale=row["text"],
        masked_rationale=without_words(row["text"], titles),
    )


def inputs_sha256(pairs: Iterable[Pair]) -> str:
    """The sha256 of every text that trains; the leak audit compares it."""
    return artifacts.sha256_of_text(text for pair in pairs for text in (pair.training_history, pair.rationale))


def validation_users(pairs: Iterable[Pair], settings: ThoughtSpaceSettings, seed: int) -> set[str]:
    """Users kept for validation: of each fold the share with the smallest hashes, at least two."""
    folds: dict[int, list[str]] = {}
    for user_id in dict.fromkeys(pair.user_id for pair in pairs):
        folds.setdefault(fold_of(user_id, max(1, settings.num_folds), seed), []).append(user_id)
    kept = set()
    for users in folds.values():
        users.sort(key=lambda user_id: stable_hash("thought-space-validation", seed, user_id))
        kept.update(users[: max(2, round(len(users) * settings.validation_share))])
    return kept


def validation_pairs(pairs: Series[Pair], held_out: set[str], settings: ThoughtSpaceSettings, seed: int) -> list[Pair]:
    """The pairs of the users kept for validation, at most as many as the settings say."""
    mine = [pair for pair in pairs if pair.user_id in held_out]
    mine.sort(key=lambda pair: stable_hash("thought-space-order", seed, pair.decision_id))
    return mine[: settings.max_validation_pairs]


def latest_pairs(pairs: Series[Pair], per_user: int | None) -> list[Pair]:
    """The latest pairs of each user; pairs stand in the order of time.

    Raises:
        ValueError: ``per_user`` is below 1.
    """
    if per_user is None:
        return list(pairs)
    if per_user < 1:
        raise ValueError(f"training_pairs_per_user is {per_user}, expected at least 1, or null for all.")
    kept: dict[str, list[Pair]] = {}
    for pair in pairs:
        kept.setdefault(pair.user_id, []).append(pair)
    chosen = {pair.decision_id for mine in kept.values() for pair in mine[-per_user:]}
    return [pair for pair in pairs if pair.decision_id in chosen]


def pair_texts(pairs: Series[Pair], side: str) -> list[str]:
    """The texts of one side that train."""
    return [pair.training_history if side == "history" else pair.rationale for pair in pairs]
