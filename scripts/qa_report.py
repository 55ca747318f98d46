"""The study's figures: means with 95 % bootstrap intervals over questions, and paired tests against named rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qa_metrics import RANK_METRICS, exact_match, f1, normalised, ranking_quality
from qa_questions import Question
from qa_rationales import Pools
from qa_selection import Scores

from pulse_hf.evaluation.statistics import holm, intervals, paired

ANSWER_METRICS = ("em", "f1")
PUBLISHED = {  # arXiv 2510.08626, table of section 5.7
    "standard": {"em": 0.4553, "f1": 0.5607},
    "cot": {"em": 0.4553, "f1": 0.5623},
    "act": {"em": 0.4333, "f1": 0.5318},
    "react+cot": {"em": 0.4283, "f1": 0.5667},
    "pulse/space/demo": {"em": 0.4951, "f1": 0.6060},
}
Table = dict[str, NDArray[np.float64]]
"""Name of each system to (questions, metrics)."""


def command() -> str:
    """The command of this process, as one would type it."""
    return " ".join(["python", *sys.argv])


def rank_table(questions: Sequence[Question], pools: Pools, scores: Mapping[str, Scores], kinds: set[str]) -> Table:
    """Ranking quality of each selector among candidates of some kinds; a paragraph is worth its best candidate.

    Args:
        questions: Whose labels are read.
        pools: All candidates.
        scores: By selector, of all candidates.
        kinds: ``quoted``, ``written`` or both; a paragraph without such a candidate comes last.
    """
    return {
        name: np.array([_ranked(one, pools[one.question_id], mine[one.question_id], kinds) for one in questions])
        for name, mine in scores.items()
    }


def _ranked(
    question: Question, pool: Sequence[Any], scores: NDArray[np.float64], kinds: set[str]
) -> tuple[float, ...]:
    kept = [place for place, candidate in enumerate(pool) if candidate.kind in kinds]
    if not kept:
        kept = list(range(len(pool)))
    of = [pool[place].paragraph for place in kept]
    paragraphs = np.full(len(question.paragraphs), -np.inf)
    np.maximum.at(paragraphs, of, scores[kept])
    # Ranks must be finite: paragraphs without a candidate stand below all that have one.
    paragraphs = np.maximum(paragraphs, scores[kept].min() - 1)
    return ranking_quality(paragraphs, question.supporting, scores[kept], of)


def paragraph_row(question: Question, scores: NDArray[np.float64]) -> tuple[float, ...]:
    """The same of a ranking of the paragraphs themselves."""
    return ranking_quality(scores, question.supporting, scores, range(len(scores)))


def answer_table(questions: Sequence[Question], given: Mapping[str, Mapping[str, str]]) -> Table:
    """EM and F1 of each system's answers; a missing answer is an error, an empty one a miss."""
    return {
        name: np.array(
            [
                (exact_match(said[one.question_id], one.answer), f1(said[one.question_id], one.answer))
                for one in questions
            ]
        )
        for name, said in given.items()
    }


def answer_shown(questions: Sequence[Question], texts: Mapping[str, str]) -> float:
    """Share of the questions other than yes/no whose answer stands word for word in the prompt: what can be copied."""
    rows = [
        f" {normalised(one.answer)} " in f" {normalised(texts[one.question_id])} "
        for one in questions
        if normalised(one.answer) not in ("yes", "no")
    ]
    return float(np.mean(rows)) if rows else 0.0


def rows_of(
    table: Table,
    metrics: Sequence[str],
    *,
    seed: int,
    settings: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row per system with intervals, command, settings, seed and seconds."""
    return [
        {
            "system": name,
            **{
                metric: _rounded(asdict(one))
                for metric, one in zip(metrics, intervals(values, seed=seed), strict=True)
            },
            "questions": len(values),
            "command": command(),
            "settings": dict(settings.get(name, {})),
            "seed": seed,
            "seconds": round(seconds.get(name, 0.0), 1),
        }
        for name, values in table.items()
    ]


def comparisons(table: Table, metrics: Sequence[str], baselines: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Paired tests of every system against each baseline; Holm over the systems of one metric and baseline."""
    found = []
    for baseline in baselines:
        others = [name for name in table if name != baseline]
        differences = [paired(table[name] - table[baseline], seed=seed) for name in others]
        for number, metric in enumerate(metrics):
            adjusted = holm({name: all_of[number].p for name, all_of in zip(others, differences, strict=True)})
            found += [
                {"system": name, "baseline": baseline, "metric": metric}
                | _rounded(asdict(all_of[number]) | {"p_holm": adjusted[name]})
                for name, all_of in zip(others, differences, strict=True)
            ]
    return found


def printed(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """A Markdown table of rows."""
    lines = [f"| system | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for row in rows:
        cells = [f"{row[one]['value']:.3f} [{row[one]['low']:.3f}, {row[one]['high']:.3f}]" for one in metrics]
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rank_section(table: Table, baselines: Sequence[str], *, seed: int, **of_rows: Any) -> dict[str, Any]:
    """Rows and comparisons of a table of rankings."""
    return {
        "rows": rows_of(table, RANK_METRICS, seed=seed, **of_rows),
        "comparisons": comparisons(table, RANK_METRICS, baselines, seed=seed),
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
