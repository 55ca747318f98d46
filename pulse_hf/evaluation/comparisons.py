"""What a report says of its systems: metrics with intervals, paired comparisons, the strongest that is not PULSE's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.evaluation.statistics import holm, intervals, paired
from pulse_hf.metrics import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metrics = Mapping[str, "NDArray[np.float64]"]

COMPARED_METRICS = ("hr@1", "ndcg@10", "mrr")
COMPARED_SYSTEMS = ("pulse", "pulse-fused")
CONTROLS = (
    ("pulse-text", "slm+sft"),  # the scorer with and without reasons
    ("thought-space", "encoder-tuned"),  # the encoder tuned to reasons and titles, or to titles alone
    ("pulse-fused", "fusion+slm+sft"),  # all of it beside the sequential models
)
"""Each of ours that thinks, and the same without thoughts."""

__all__ = [
    "COMPARED_METRICS",
    "COMPARED_SYSTEMS",
    "CONTROLS",
    "against_the_strongest",
    "compare",
    "compare_slices",
    "compared_pairs",
    "strongest_baseline",
    "summarise",
    "what_thoughts_add",
]


def summarise(metrics: Mapping[str, Metrics], *, cold: NDArray[np.bool_], seed: int) -> dict[str, dict[str, Any]]:
    """Every system's metrics with intervals, over all users and by slice.

    Args:
        metrics: Name of each system to its metrics per decision, all over the same decisions.
        cold: (n,) whether the target item has at most 5 training events.
        seed: Seed of the resamples.

    Returns:
        Name of each system to ``{metric: {value, low, high}, "slices": {"cold", "warm"}}``.
    """
    table = np.stack([metrics[name][metric] for name in metrics for metric in METRICS], axis=1)
    everyone = np.ones(len(table), dtype=bool)
    parts: dict[str, list[dict[str, Any]]] = {}
    for part, members in (("all", everyone), ("cold", cold), ("warm", ~cold)):
        parts[part] = [asdict(span) for span in intervals(table[members], seed=seed)]
    report: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(metrics):
        columns = slice(place * len(METRICS), (place + 1) * len(METRICS))
        named = {part: dict(zip(METRICS, spans[columns], strict=True)) for part, spans in parts.items()}
        slices = {
            "cold": {**named["cold"], "users": int(cold.sum())},
            "warm": {**named["warm"], "users": int((~cold).sum())},
        }
        report[name] = {**named["all"], "slices": slices}
    return report


def compared_pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """Ours against everything else, and what of :data:`CONTROLS` that leaves out: one family of tests.

    One question, one row: pulse against pulse-fused is the mirror of the other.

    >>> compared_pairs(["slm+sft", "pulse", "pulse-text"])
    [('pulse', 'slm+sft'), ('pulse', 'pulse-text'), ('pulse-text', 'slm+sft')]
    """
    pairs = [(ours, other) for ours in COMPARED_SYSTEMS if ours in systems for other in systems if other != ours]
    pairs += [pair for pair in CONTROLS if set(pair) <= set(systems) and pair not in pairs]
    return [pair for pair in pairs if pair != ("pulse", "pulse-fused")]


def what_thoughts_add(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Comparisons of :data:`CONTROLS`; what older reports corrected apart is taken from there only if it must be."""
    rows = {(row["system"], row["baseline"], row["metric"]): row for row in report.get("controls", [])}
    rows |= {(row["system"], row["baseline"], row["metric"]): row for row in report["comparisons"]}
    return [rows[(*pair, metric)] for metric in COMPARED_METRICS for pair in CONTROLS if (*pair, metric) in rows]


def compare(
    metrics: Mapping[str, Metrics],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    compared: Sequence[str] = COMPARED_METRICS,
) -> list[dict[str, Any]]:
    """Paired differences with intervals, randomisation p, and Holm over all pairs of one metric.

    Args:
        metrics: Name of each system to its metrics per decision.
        pairs: (system, baseline) to be compared.
        seed: Seed of resamples and flips.
        compared: Metrics; each is one family for Holm.
    """
    return compare_measured([(metrics[system], metrics[other]) for system, other in pairs], pairs, seed, compared)


def compare_measured(
    measured: Sequence[tuple[Metrics, Metrics]],
    pairs: Sequence[tuple[str, str]],
    seed: int,
    compared: Sequence[str] = COMPARED_METRICS,
) -> list[dict[str, Any]]:
    """As :func:`compare`, of metrics that each pair has of its own."""
    rows: list[dict[str, Any]] = []
    for metric in compared if pairs else ():
        differences = np.stack([ours[metric] - others[metric] for ours, others in measured], axis=1)
        found = paired(differences, seed=seed)
        adjusted = holm({str(place): row.p for place, row in enumerate(found)})
        for place, ((system, other), row) in enumerate(zip(pairs, found, strict=True)):
            named = {"system": system, "baseline": other, "metric": metric}
            rows.append({**named, **asdict(row), "p_holm": adjusted[str(place)]})
    return rows


def compare_slices(
    measured: Sequence[tuple[Metrics, Metrics]],
    pairs: Sequence[tuple[str, str]],
    *,
    cold: NDArray[np.bool_],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """HR@1 of each pair where the target is cold, and where it is warm; each slice is a Holm family of its own.

    Args:
        measured: Metrics per decision of each pair's system and baseline.
        pairs: Their names.
        cold: (n,) whether the target item has at most 5 training events.
        seed: Seed of resamples and flips.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for part, members in (("cold", cold), ("warm", ~cold)):
        inside = [({"hr@1": ours["hr@1"][members]}, {"hr@1": other["hr@1"][members]}) for ours, other in measured]
        found[part] = compare_measured(inside, pairs, seed, ("hr@1",)) if members.any() else []
    return found


def strongest_baseline(report: Mapping[str, Any], part: str | None = None) -> str:
    """The row with the highest HR@1 that is not PULSE's, over all users or in a slice (``cold``, ``warm``)."""
    from pulse_hf.evaluation.systems import OURS

    def hits(row: Mapping[str, Any]) -> float:
        return float((row["slices"][part] if part else row)["hr@1"]["value"] or 0)

    others = {name: hits(row) for name, row in report["systems"].items() if name not in OURS}
    return max(others, key=others.__getitem__)


def against_the_strongest(report: Mapping[str, Any], part: str | None = None) -> list[dict[str, Any]]:
    """Comparisons of PULSE's rows with the strongest row that is not PULSE's, by HR@1; of a slice, if it was tested.

    Older reports test no slices: there are no rows then.
    """
    rows = report.get("slice_comparisons", {}).get(part, []) if part else report["comparisons"]
    strongest = strongest_baseline(report, part)
    return [row for row in rows if row["baseline"] == strongest and row["metric"] == "hr@1"]
