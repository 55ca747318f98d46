"""One report of several seeds: every user's metrics are averaged over the runs, then compared as ever.

A difference that one seed shows may be luck of its fits. The unit stays the user: averaging over seeds
first keeps the rows independent of each other, which several rows of one user would not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import ArtifactError
from pulse_hf.evaluation.comparisons import (
    Metrics,
    compare,
    compare_measured,
    compare_slices,
    compared_pairs,
    summarise,
)
from pulse_hf.evaluation.outcomes import Outcome
from pulse_hf.evaluation.reasons import OWN, score_file
from pulse_hf.metrics import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pooled_report"]

_SAME = ("split", "negatives", "sampling", "users", "refit", "synthetic", "repeats")
_KEPT = ("stages", "versions")
_WEIGHTS = ("stackers", "vote_weights")  # fitted on validation; a mean of them is nobody's


def pooled_report(outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """The report of several finished runs that differ in their seed.

    Args:
        outcomes: Of the runs, which have the same users.
        seed: Of resamples and flips.

    Returns:
        A report with a run's own keys. A system is averaged over the runs that have it, ``seeds`` says
        over which, a pair is compared over those that have both; ``protocol`` has all ``seeds`` and each run's
        ``candidates_sha256``; ``code_sha256`` is of the package that kept each run (empty where nobody told);
        ``by_seed`` has each run's HR@1, ``None`` where it has none. What cannot be pooled
        is told by seed (``stackers_by_seed``, ``vote_weights_by_seed``) or left to the runs' own reports (training
        rows).

    Raises:
        ArtifactError: The runs differ in protocol or users, or an audit did not pass.
    """
    _check(outcomes)
    reports = [one.report for one in outcomes]
    systems = list(dict.fromkeys(name for one in reports for name in one["systems"]))
    having = {name: [place for place, one in enumerate(reports) if name in one["systems"]] for name in systems}
    seeds = [one["protocol"]["seed"] for one in reports]
    metrics = {name: _mean([outcomes[place].metrics(name) for place in having[name]]) for name in systems}
    cold = outcomes[0].cold
    summary = summarise(metrics, cold=cold, seed=seed)
    measured, pairs = _pairs(outcomes, having, compared_pairs(systems))
    report = {
        "protocol": {
            **reports[0]["protocol"],
            "seeds": seeds,
            "candidates_sha256": [one["protocol"]["candidates_sha256"] for one in reports],
        },
        "systems": {
            name: {
                **summary[name],
                "cost": _mean_cost([reports[place] for place in having[name]], name),
                "seeds": [seeds[place] for place in having[name]],
            }
            for name in systems
        },
        "comparisons": compare_measured(measured, pairs, seed),
        "slice_comparisons": compare_slices(measured, pairs, cold=cold, seed=seed),
        "by_seed": {
            name: [one["systems"][name]["hr@1"]["value"] if name in one["systems"] else None for one in reports]
            for name in systems
        },
        "audit": {"passed": True, "checks": [check for one in reports for check in one["audit"]["checks"]]},
        **{key: reports[0][key] for key in _KEPT},
        **{f"{key}_by_seed": [one.get(key, {}) for one in reports] for key in _WEIGHTS},
        "code_sha256": [one.code_sha256 for one in outcomes],
    }
    told = [one for one in outcomes if "worth_of_a_reason" in one.report]
    return report | ({"worth_of_a_reason": _worth(told, cold, seed)} if told else {})


def _pairs(
    outcomes: Sequence[Outcome], having: Mapping[str, list[int]], pairs: Sequence[tuple[str, str]]
) -> tuple[list[tuple[Metrics, Metrics]], list[tuple[str, str]]]:
    """Metrics of each pair over the runs that have both (another seed has other candidates), and its names."""
    common = {(one, other): [place for place in having[one] if place in having[other]] for one, other in pairs}
    paired = [pair for pair in pairs if common[pair]]
    measured: list[tuple[Metrics, Metrics]] = []
    for pair in paired:
        ours, others = (_mean([outcomes[place].metrics(name) for place in common[pair]]) for name in pair)
        measured.append((ours, others))
    return measured, paired


def _worth(told: Sequence[Outcome], cold: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """The controls of a reason over the runs that scored them, against ``pulse`` in these very runs."""
    variants = [one.report["worth_of_a_reason"]["variants"] for one in told]
    names = [name for name in variants[0] if name != OWN and all(name in one for one in variants)]
    files = {OWN: "pulse", **{name: score_file(name) for name in names}}
    metrics = {name: _mean([one.metrics(file) for one in told]) for name, file in files.items()}
    return {
        "variants": summarise(metrics, cold=cold, seed=seed),
        "comparisons": compare(metrics, [(OWN, name) for name in names], seed=seed),
        "runs": len(told),
    }


def _check(outcomes: Sequence[Outcome]) -> None:
    first = outcomes[0]
    for one in outcomes:
        if not one.report["audit"]["passed"]:
            raise ArtifactError(f"{one.name}: its leak audit did not pass; nothing is pooled with it")
        for key in _SAME:
            found, expected = one.report["protocol"].get(key), first.report["protocol"].get(key)
            if found != expected:
                raise ArtifactError(f"{one.name}: protocol.{key} is {found!r}, in {first.name} it is {expected!r}")
        if one.chosen_sha256 != first.chosen_sha256:
            raise ArtifactError(f"{one.name}: its test users or what they chose are others than in {first.name}")
    seeds = [one.report["protocol"]["seed"] for one in outcomes]
    if len(set(seeds)) != len(seeds):
        raise ArtifactError(f"the runs have the seeds {seeds}; each must have its own")


def _mean(measured: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {metric: np.mean([one[metric] for one in measured], axis=0) for metric in METRICS}


def _mean_cost(reports: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    costs = [report["systems"][name]["cost"] for report in reports]
    told = [key for key in costs[0] if all(key in one for one in costs)]  # older reports tell less
    return {key: round(float(np.mean([one[key] for one in costs])), 6) for key in told}
