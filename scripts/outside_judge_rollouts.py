"""The first part of ``outside_judge.py``: does agreement rank the rationales of one prompt as their reward does?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import outside_judge_data as data
import outside_judge_statistics as measures
import torch
from numpy.typing import NDArray
from outside_judge_data import Group
from outside_judge_fits import FROZEN, Study, about, differences, spaces_over, spans

from pulse_hf import artifacts
from pulse_hf.evaluation.reasons import derangement
from pulse_hf.evaluation.statistics import holm, paired_p
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.training.thought_space import ThoughtSpaceSettings

SETTINGS = ThoughtSpaceSettings(epochs=2, num_folds=0, max_history_tokens=128)
RECOMMENDATION, CONSENSUS, LENGTH_RULE = "trained in recommendation", "consensus of the 16", "length rule (fitted)"
OTHER = " | another person's history"


def another_person(groups: Sequence[Group], seed: int) -> list[int]:
    """For each group the place of one that is about somebody else; each is used once."""
    for trial in range(1000):
        order = derangement(len(groups), seed + trial)
        if all(groups[here].person != groups[there].person for here, there in enumerate(order)):
            return order
    raise ValueError("No order of the histories gives everybody somebody else's: too few people are judged.")


def agreements(
    groups: Sequence[Group], titles: str, folders: Mapping[str, Path], given: Path | None, seed: int
) -> dict[str, torch.Tensor]:
    """Scores of all rationales by each space, with the person's own history and with another person's."""
    texts = [text for group in groups for text in group.rationales(titles)]
    place = group_numbers(groups)
    other = np.array(another_person(groups, seed))
    scores: dict[str, torch.Tensor] = {}

    def add(name: str, history: NDArray[np.float32], rationale: NDArray[np.float32]) -> None:
        for ending, whose in (("", place), (OTHER, other[place])):
            scores[name + ending] = torch.from_numpy((history[whose] * rationale).sum(1))

    def told(settings: Any) -> list[str]:
        size = {"max_events": settings.max_events, "review_words": settings.review_words}
        return [group.told(titles, **size) for group in groups]

    for name, space in spaces_over(SETTINGS, folders).items():
        rationale = space.vectors("rationale", texts)
        add(name, space.vectors("history", told(SETTINGS)), rationale)
        if name == FROZEN:
            middle = measures.by_prompt(rationale, place)[place]
            scores[CONSENSUS] = torch.from_numpy((middle * rationale).sum(1))
    if given:
        space = PulseThoughtSpaceModel.from_pretrained(str(given)).eval()
        add(
            RECOMMENDATION,
            space.encode_histories(told(space.config)).numpy(),
            space.encode_rationales(texts).numpy(),
        )
    return scores


def group_numbers(groups: Sequence[Group]) -> NDArray[np.int64]:
    """The number of each rationale's group."""
    return np.repeat(np.arange(len(groups)), [len(group.texts) for group in groups])


def floors(training: Sequence[Group], judged: Sequence[Group], titles: str) -> dict[str, NDArray[np.float64]]:
    """Scores that no person's history decides; the fitted ones learn the reward itself from other people's groups."""
    place, rewards = group_numbers(training), np.concatenate([group.rewards for group in training])
    seen, texts = ([text for group in some for text in group.rationales(titles)] for some in (training, judged))
    words = measures.num_words(texts)
    return {
        "longest": words,
        "shortest": -words,
        LENGTH_RULE: measures.length_shape(texts) @ measures.length_rule(seen, rewards, place),
        "words rule (fitted)": measures.WordRule(seen, rewards, place)(texts),
    }


def judge_scores(
    judged: Sequence[Group], scores: Mapping[str, NDArray[np.float64]]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """How each scorer fares with the judge; groups whose rewards are all equal rank nothing and are left out.

    Args:
        judged: The groups.
        scores: Per scorer one score for each rationale of each group, in order.

    Returns:
        Per scorer (prompts, 3): rank correlation with the reward, the same at equal length, and what its best has
        over the group's mean; and (prompts, 3): mean, best and standard deviation of the rewards.
    """
    ends = np.cumsum([len(group.texts) for group in judged])
    kept = [
        (g, slice(end - len(g.texts), end)) for g, end in zip(judged, ends, strict=True) if len(set(g.rewards)) > 1
    ]
    prompts = [group.prompt for group, _ in kept]
    table = {}
    for name, values in scores.items():
        found = []
        for group, part in kept:
            score, reward = values[part], np.array(group.rewards)
            given_length = measures.spearman_given(score, reward, measures.num_words(group.texts))
            gain = measures.best_reward(score, reward) - reward.mean()
            found.append((measures.spearman(score, reward), given_length, gain))
        table[name] = measures.by_prompt(np.array(found), prompts)
    levels = [(np.mean(group.rewards), max(group.rewards), np.std(group.rewards)) for group, _ in kept]
    return table, measures.by_prompt(np.array(levels), prompts)


def figures(
    table: Mapping[str, NDArray[np.float64]], levels: NDArray[np.float64], name: str, seed: int
) -> dict[str, Any]:
    """What a row says of one scorer."""
    values = table[name]
    wide = levels[:, 2] >= np.median(levels[:, 2])
    correlation, given_length, gain = spans(values, seed)
    row = {
        "spearman": correlation,
        "spearman_given_length": given_length,
        "spearman_where_rewards_differ_most": spans(values[wide, :1], seed)[0],
        "best_of_16": {
            "reward": spans(levels[:, :1] + values[:, 2:], seed)[0],
            "over_the_mean": gain,
            "share_of_headroom": round(gain["value"] / float((levels[:, 1] - levels[:, 0]).mean()), 4),
            "over_the_length_rule": differences(values[:, 2:], table[LENGTH_RULE][:, 2:], seed)[0],
        },
        "p": dict(zip(("spearman", "best_of_16"), paired_p(values[:, [0, 2]], seed=seed).tolist(), strict=True)),
    }
    if name + OTHER in table:
        row["spearman_another_person"] = spans(table[name + OTHER][:, :1], seed)[0]
        row["own_less_another"] = differences(values[:, :1], table[name + OTHER][:, :1], seed)[0]
    return row


def rollouts(study: Study, choices: Sequence[str], maskings: Sequence[str], given: Path | None) -> dict[str, Any]:
    """Fit, score and judge.

    Args:
        study: Where things are.
        choices: Which rationales to train on, see :func:`outside_judge_data.rollout_pairs`.
        maskings: Which forms of the texts to judge, see ``outside_judge_data.TITLES``.
        given: Folder of a Thought Space that was trained in recommendation, if there is one.
    """
    training, judged = data.split_groups(data.read_groups(study.data))
    folders = {
        f"trained on {choice}": study.fit(
            f"rollouts-{choice}", data.rollout_pairs(training, choice, SETTINGS, study.seed), SETTINGS
        )
        for choice in choices
    }
    parents = {name: artifacts.content_sha256(folder) for name, folder in folders.items()}
    parents["texts"] = artifacts.sha256_of_text(text for group in judged for text in group.texts)
    parents["given"] = artifacts.sha256_of_file(given / "model.safetensors") if given else "none"
    rows: list[dict[str, Any]] = []
    for titles in maskings:
        scored, seconds = study.kept(
            f"rollouts-scores-{titles}", parents, lambda t=titles: agreements(judged, t, folders, given, study.seed)
        )
        started = time.perf_counter()
        table, levels = judge_scores(judged, {**floors(training, judged, titles), **scored})
        seconds += time.perf_counter() - started
        for name in (name for name in table if not name.endswith(OTHER)):
            known, settings = about(folders.get(name)), settings_of(name, given)
            row = {"scorer": name, "titles": titles, **figures(table, levels, name, study.seed), **known}
            rows.append(study.row(settings, seconds + known.get("fit_seconds", 0.0), **row))
    for kind in ("spearman", "best_of_16"):
        adjusted = holm({str(n): row["p"][kind] for n, row in enumerate(rows)})
        for n, row in enumerate(rows):
            row["p"][f"{kind}_holm"] = adjusted[str(n)]
    mean, best, deviation = spans(levels, study.seed)
    return {
        "counts": {
            "prompts": len(levels),
            "people": len({group.person for group in judged}),
            "groups": len(judged),
            "groups_of_equal_rewards": sum(len(set(group.rewards)) == 1 for group in judged),
            "rationales": sum(len(group.texts) for group in judged),
            "training_groups": len(training),
        },
        "rewards": {"mean (a random pick)": mean, "best (the oracle)": best, "deviation_in_group": deviation},
        "rows": rows,
    }


def settings_of(name: str, given: Path | None) -> dict[str, Any]:
    """What decides a scorer: of a floor nothing but the texts."""
    if name == RECOMMENDATION and given:
        return {"model": str(given)}
    if name in (FROZEN, CONSENSUS) or name.startswith("trained on"):
        return asdict(SETTINGS)
    return {}
