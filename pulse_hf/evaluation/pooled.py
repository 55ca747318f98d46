"""One report of several seeds: every user's metrics are averaged over the runs, then compared as ever.

A difference that one seed shows may be luck of its fits. The unit stays the user (DESIGN §8.6): averaging over seeds
first keeps the rows independent of each other, which several rows of one user would not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import ArtifactError, read_json, read_table
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.reasons import OWN, score_file
from pulse_hf.evaluation.report import compare, compared_pairs, control_pairs, summarise
from pulse_hf.metrics import METRICS, rank_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pooled_report"]

_SAME = ("split", "negatives", "sampling", "users", "refit", "synthetic", "repeats")
_KEPT = ("stages", "versions")


def pooled_report(runs: Sequence[Path], *, seed: int = 0) -> dict[str, Any]:
    """The report of several finished runs that differ in their seed.

    Args:
        runs: Run folders with ``report.json`` and ``evaluate/``, of the same users.
        seed: Of resamples and flips.

    Returns:
        A report with a run's own keys (DESIGN §8.7). A system is averaged over the runs that have it, ``seeds`` says
        over which; ``protocol`` has all ``seeds`` and each run's ``candidates_sha256``; ``by_seed`` has each run's
        HR@1, ``None`` where it has none. What cannot be pooled (stackers, training rows) is left to the runs' own
        reports.

    Raises:
        ArtifactError: The runs differ in protocol or users, or an audit did not pass.
    """
    reports = [read_json(run / "report.json") for run in runs]
    _check(runs, reports)
    studies = [load_study(run) for run in runs]
    for run, study in zip(runs, studies, strict=True):
        if _target(study) != _target(studies[0]):
            raise ArtifactError(f"{run}: its test users or what they chose are others than in {runs[0]}")
    systems = list(dict.fromkeys(name for one in reports for name in one["systems"]))
    having = {name: [place for place, one in enumerate(reports) if name in one["systems"]] for name in systems}
    seeds = [one["protocol"]["seed"] for one in reports]
    metrics = {name: _mean([_metrics(studies[place], name) for place in having[name]]) for name in systems}
    cold = studies[0].cold(sorted(studies[0].split("test"), key=lambda one: one.user_id))
    summary = summarise(metrics, cold=cold, seed=seed)
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
        "comparisons": compare(metrics, compared_pairs(systems), seed=seed),
        "controls": compare(metrics, control_pairs(systems), seed=seed),
        "by_seed": {
            name: [one["systems"][name]["hr@1"]["value"] if name in one["systems"] else None for one in reports]
            for name in systems
        },
        "audit": {"passed": True, "checks": [check for one in reports for check in one["audit"]["checks"]]},
        **{key: reports[0][key] for key in _KEPT},
    }
    told = [
        (study, one["worth_of_a_reason"])
        for study, one in zip(studies, reports, strict=True)
        if "worth_of_a_reason" in one
    ]
    return report | ({"worth_of_a_reason": _worth(told, cold, seed)} if told else {})


def _worth(told: Sequence[tuple[Study, Mapping[str, Any]]], cold: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """The controls of a reason over the runs that scored them, against ``pulse`` in these very runs."""
    names = [
        name for name in told[0][1]["variants"] if name != OWN and all(name in one["variants"] for _, one in told)
    ]
    files = {OWN: "pulse", **{name: score_file(name) for name in names}}
    metrics = {name: _mean([_metrics(study, file) for study, _ in told]) for name, file in files.items()}
    return {
        "variants": summarise(metrics, cold=cold, seed=seed),
        "comparisons": compare(metrics, [(OWN, name) for name in names], seed=seed),
        "runs": len(told),
    }


def _check(runs: Sequence[Path], reports: Sequence[Mapping[str, Any]]) -> None:
    for run, report in zip(runs, reports, strict=True):
        if not report["audit"]["passed"]:
            raise ArtifactError(f"{run}: its leak audit did not pass; nothing is pooled with it")
        for key in _SAME:
            found, expected = report["protocol"].get(key), reports[0]["protocol"].get(key)
            if found != expected:
                raise ArtifactError(f"{run}: protocol.{key} is {found!r}, in {runs[0]} it is {expected!r}")
    seeds = [report["protocol"]["seed"] for report in reports]
    if len(set(seeds)) != len(seeds):
        raise ArtifactError(f"the runs have the seeds {seeds}; each must have its own")


def _metrics(study: Study, file: str) -> dict[str, NDArray[np.float64]]:
    """Metrics of one run's kept scores, in the order of user ids."""
    table = read_table(study.run / "evaluate" / "scores" / "test" / f"{file}.parquet")
    columns = (table[name].to_pylist() for name in ("user_id", "decision_id", "scores"))
    rows = sorted(zip(*columns, strict=True), key=itemgetter(0))
    scores = [None if row is None else np.array(row) for _, _, row in rows]
    ids = [decision_id for _, decision_id, _ in rows]
    return rank_metrics(scores, [study.sets[one].target_index for one in ids], system=file, decision_ids=ids)


def _target(study: Study) -> dict[str, str]:
    decisions = study.split("test")
    return dict(zip((one.user_id for one in decisions), study.target_items(decisions), strict=True))


def _mean(measured: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {metric: np.mean([one[metric] for one in measured], axis=0) for metric in METRICS}


def _mean_cost(reports: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    costs = [report["systems"][name]["cost"] for report in reports]
    return {key: round(float(np.mean([one[key] for one in costs])), 3) for key in costs[0]}
