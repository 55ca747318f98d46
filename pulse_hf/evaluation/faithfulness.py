"""What only the embedded world can tell: do thoughts name the true motive, and how far are the oracles?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.data.world.oracles import oracle_scores
from pulse_hf.data.world.stage import load_truth
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.reasons import derangement
from pulse_hf.evaluation.statistics import intervals, paired
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["extractive_reasons", "faithfulness", "measured_oracles", "names_one"]


def names_one(text: str, phrases: Iterable[str]) -> bool:
    """Whether the text holds one of the phrases as whole words, in any case.

    >>> names_one("They want Peace and quiet.", ["quiet"]), names_one("quietly", ["quiet"])
    (True, False)
    """
    words = f" {_words(text)} "
    return any(f" {_words(phrase)} " in words for phrase in phrases)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def faithfulness(run: Path, decisions: Sequence[Decision], reasons: Mapping[str, str], *, seed: int) -> dict[str, Any]:
    """How often a chosen thought names the user's true first motive, beside a random other user's.

    Args:
        run: A run of the embedded world.
        decisions: Test decisions.
        reasons: Chosen reason by decision id, ``""`` for none (it names nothing and counts).
        seed: Seed of the other users and the resamples.

    Returns:
        ``own`` and ``other`` shares with intervals, ``ratio`` and their paired difference with p; the same under
        ``held_out`` for the people whose motive pulse-nano was never trained on.
    """
    truth = load_truth(run)
    assert truth is not None, f"{run} is no run of the embedded world"
    motives = [_first_motive(truth, decision) for decision in decisions]
    others = [motives[place] for place in derangement(len(motives), seed)]
    texts = [reasons[decision.decision_id] for decision in decisions]

    def named(wanted: Sequence[str]) -> NDArray[np.float64]:
        hits = [names_one(text, truth["motives"][name]) for text, name in zip(texts, wanted, strict=True)]
        return np.array(hits, dtype=float)

    table = np.stack([named(motives), named(others)], axis=1)
    held_out = np.array([name in truth["held_out_motives"] for name in motives])
    return _shares(table, seed) | ({"held_out": _shares(table[held_out], seed)} if held_out.sum() > 1 else {})


def extractive_reasons(run: Path, decisions: Sequence[Decision]) -> dict[str, str]:
    """What the engine without a language model says to the very prompts of the base reasons, by decision id."""
    from pulse_hf.evaluation.finished_run import FinishedRun
    from pulse_hf.evaluation.stage_inputs import thoughts_read
    from pulse_hf.reasoning.generator import Sampling, open_generator
    from pulse_hf.reasoning.parsing import parse_reason

    finished = FinishedRun(run)
    by_user = {sequence.user_id: sequence for sequence in finished.sequences}
    prompts = [one.prompt for one in thoughts_read(finished, by_user, decisions, finished.stored_lent)]
    written = open_generator("extractive", "", batch_size=1).generate(prompts, width=1, sampling=Sampling(), seed=0)
    return {prompt.key: parse_reason(texts[0]).text for prompt, texts in zip(prompts, written, strict=True)}


def _shares(table: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Own and other share of ``(people, 2)`` hits."""
    own, other = intervals(table, seed=seed)
    (difference,) = paired(table[:, :1] - table[:, 1:], seed=seed)
    return {
        "decisions": len(table),
        "own": asdict(own),
        "other": asdict(other),
        "ratio": float(table[:, 0].mean() / table[:, 1].mean()) if table[:, 1].any() else None,
        **asdict(difference),
    }


def _first_motive(truth: Mapping[str, Any], decision: Decision) -> str:
    """Name of the motive that drives most of the user's choices."""
    # Numbers count in "motive_names": JSON is written with sorted keys, so "motives" has lost the order.
    return str(truth["motive_names"][truth["users"][decision.user_id][0]])


def measured_oracles(run: Path, study: Study, decisions: Sequence[Decision]) -> dict[str, list[NDArray[np.float64]]]:
    """Scores of those who know what no system can, in the candidates' order; empty outside the embedded world."""
    truth = load_truth(run)
    if truth is None:
        return {}
    return oracle_scores(truth, study.sequences, [study.sets[decision.decision_id] for decision in decisions])
