"""What ``outside_judge.py`` reads: rated rationales and written explanations, split so that nobody is on both."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nano_corpus import held_out_rollout

from pulse_hf import schema
from pulse_hf.reasoning.behaviour import behaviour_text, without_words
from pulse_hf.schema import Item, stable_hash
from pulse_hf.training.thought_pairs import Pair

TITLES = ("titles", "titles_masked")
MASKINGS = ("explanation", "both")
CHOICES = ("best", "above_median", "worst")


@dataclass(frozen=True)
class Group:
    """The rationales that one prompt got in one step.

    Args:
        prompt: Its id.
        step: Training step of the model that wrote them.
        person: Whose history the prompt tells, see :func:`people`.
        target: Title of the item that the rationales are about.
        history: The person's events, oldest first: ``(title, words)``.
        texts: The rationales.
        rewards: Of each: minus the rating error, in stars, of a judge that read it.
    """

    prompt: int
    step: int
    person: str
    target: str
    history: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def titles(self) -> list[str]:
        """All titles that masking hides."""
        return [self.target, *(title for title, _ in self.history)]

    def told(self, titles: str, *, max_events: int, review_words: int) -> str:
        """The target-free behavioural text b_u."""
        names = [title for title, _ in self.history]
        items = {title: Item(title, title, title) for title in names}
        size = len(names)
        words = tuple(words for _, words in self.history)
        sequence = schema.Sequence(self.person, tuple(names), (), (None,) * size, words)
        masked = titles == "titles_masked"
        text = behaviour_text(
            sequence, items, target=None, max_events=max_events, review_words=review_words, with_titles=not masked
        )
        return without_words(text, self.titles) if masked else text

    def rationales(self, titles: str) -> list[str]:
        """The rationales, with the words of all titles masked if asked for."""
        return [without_words(text, self.titles) if titles == "titles_masked" else text for text in self.texts]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def people(prompts: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Who each prompt is about: the data has no user ids, but histories that share a review are one person's."""
    parent = {row["id"]: row["id"] for row in prompts}

    def root(prompt: int) -> int:
        while parent[prompt] != prompt:
            parent[prompt] = parent[parent[prompt]]
            prompt = parent[prompt]
        return prompt

    first: dict[str, int] = {}
    for row in prompts:
        for event in row["user_history"]:
            known = first.setdefault(json.dumps(event, sort_keys=True), row["id"])
            parent[root(row["id"])] = root(known)
    return {prompt: str(root(prompt)) for prompt in parent}


def read_groups(data: Path) -> list[Group]:
    """All groups, in order of prompt and step."""
    prompts = {row["id"]: row for row in rows(data / "reason4rec_rollouts" / "prompts.jsonl.gz")}
    person = people(list(prompts.values()))
    found: dict[tuple[int, int], list[tuple[str, float]]] = defaultdict(list)
    for row in rows(data / "reason4rec_rollouts" / "completions.jsonl.gz"):
        found[row["prompt_id"], row["step"]].append((row["completion"].strip(), float(row["reward"])))

    def event(told: dict[str, Any]) -> tuple[str, str]:
        return told["title"], f"{told['User Preference Elements']}, {told['Positive Aspects']}"

    groups = []
    for (prompt, step), written in sorted(found.items()):
        history = tuple(event(told) for told in prompts[prompt]["user_history"])
        texts, rewards = zip(*written, strict=True)
        groups.append(Group(prompt, step, person[prompt], prompts[prompt]["target_title"], history, texts, rewards))
    return groups


def split_groups(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Groups to train on and groups to judge.

    Judged are the prompts that pulse-nano never saw; trained on are the others, less those of a person who is judged.
    """
    judged = [group for group in groups if held_out_rollout(group.prompt)]
    seen = {group.person for group in judged}
    return [one for one in groups if not held_out_rollout(one.prompt) and one.person not in seen], judged


def rollout_pairs(groups: Sequence[Group], choice: str, settings: Any, seed: int) -> list[Pair]:
    """One pair a group: its history with the best-rewarded rationale, one above the median, or the worst (a control).

    Raises:
        ValueError: The choice is not one of ``CHOICES``.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice is {choice!r}, expected one of {', '.join(CHOICES)}")
    rng = np.random.default_rng(seed)
    pairs = []
    for group in groups:
        order = np.argsort(group.rewards, kind="stable")
        upper = int(rng.choice(order[(len(order) + 1) // 2 :]))
        row = {"best": int(order[-1]), "above_median": upper, "worst": int(order[0])}[choice]
        length = {"max_events": settings.max_events, "review_words": settings.review_words}
        history, masked = (group.told(titles, **length) for titles in TITLES)
        text = group.texts[row]
        name = f"{group.prompt}@{group.step}"
        hidden = without_words(text, group.titles)
        pairs.append(Pair(name, group.person, group.target, history, history, masked, text, hidden))
    return pairs


@dataclass(frozen=True)
class Explained:
    """One row of XRec.

    Args:
        user: Whose choice.
        item: The chosen item.
        query: What is known of the user.
        item_text: What is known of the item.
        explanation: The written explanation of the choice.
    """

    user: str
    item: str
    query: str
    item_text: str
    explanation: str


def read_explained(data: Path, domain: str, masking: str) -> list[Explained]:
    """The rows of one domain, the words of the chosen item's title left out of its explanation.

    Args:
        data: Folder of the data sets.
        domain: ``"amazon"`` or ``"google"``.
        masking: ``"explanation"``: queries are left alone. ``"both"``: the same words are left out of them, too.

    Raises:
        ValueError: The masking is another.
    """
    if masking not in MASKINGS:
        raise ValueError(f"masking is {masking!r}, expected one of {', '.join(MASKINGS)}")

    def explained(row: dict[str, Any]) -> Explained:
        query, item, explanation = (row[key] for key in ("user_summary", "item_summary", "explanation"))
        title = [row["title"]]
        if masking == "both":
            query, item = without_words(query, title), without_words(item, title)
        return Explained(str(row["uid"]), str(row["iid"]), query, item, without_words(explanation, title))

    return [explained(row) for row in rows(data / "xrec" / f"{domain}.jsonl.gz")]


def split_explained(rows: Sequence[Explained], candidates: int, seed: int) -> tuple[list[Explained], list[Explained]]:
    """Rows to train on and one row of each of ``candidates`` other users to judge.

    Raises:
        ValueError: There are not more users than candidates.
    """
    users = sorted({row.user for row in rows}, key=lambda user: stable_hash("outside-judge", seed, user))
    if len(users) <= candidates:
        raise ValueError(f"Found {len(users)} users, expected more than {candidates}, the candidates")
    held_out = set(users[:candidates])
    judged = {row.user: row for row in reversed(rows) if row.user in held_out}  # the first row of each
    return [row for row in rows if row.user not in held_out], list(judged.values())


def explained_pairs(rows: Sequence[Explained]) -> list[Pair]:
    """A pair for each row; its texts have no titles, so both forms are the same."""
    return [
        Pair(f"{n}", row.user, row.item, row.query, row.query, row.query, row.explanation, row.explanation)
        for n, row in enumerate(rows)
    ]
