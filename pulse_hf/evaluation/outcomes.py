"""What a finished run leaves for a report of several seeds: where each target stood, without people, items or texts.

A seed takes hours, and seeds may be run on different days and machines. What is pooled in the end are these places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pulse_hf.artifacts import (
    MANIFEST,
    ArtifactError,
    read_json,
    read_manifest,
    read_table,
    sha256_of_text,
    write_json,
    write_table,
)
from pulse_hf.evaluation.protocol import Study, load_study
from pulse_hf.evaluation.reasons import OWN, score_file
from pulse_hf.metrics import place_metrics, target_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = tuple[NDArray[np.int64], NDArray[np.int64]]

__all__ = ["Outcome", "code_sha256", "load_outcome", "outcome_of", "save_outcome"]

_PACKAGE = Path(__file__).resolve().parents[1]
_REPORT, _PLACES = "outcome.json", "places.parquet"
_KEPT = ("protocol", "systems", "audit", "stages", "versions", "worth_of_a_reason", "stackers", "vote_weights")


@dataclass(frozen=True)
class Outcome:
    """One run's outcome; rows are test users in the order of their ids.

    Args:
        name: Where it is from, for messages.
        report: What is pooled of the run's report.
        places: By kept scores (a system's, or those of a variant of ``pulse``) how many candidates stood above the
            target and how many shared its score.
        cold: (users,) whether the target has few training events.
        chosen_sha256: Of who chose what.
        seconds: Of all stages.
        settings_sha256: Of the run's settings; empty if nobody told.
        code_sha256: Of the package in the process that kept the outcome; empty if nobody told.
    """

    name: str
    report: Mapping[str, Any]
    places: Mapping[str, Places]
    cold: NDArray[np.bool_]
    chosen_sha256: str
    seconds: float
    settings_sha256: str = ""
    code_sha256: str = ""

    def metrics(self, file: str) -> dict[str, NDArray[np.float64]]:
        """Metrics (users,) of one system or variant."""
        return place_metrics(*self.places[file])


def outcome_of(run: Path, settings_sha256: str = "") -> Outcome:
    """Read the outcome of a finished run.

    Args:
        run: A run folder with ``report.json`` and ``evaluate/``.
        settings_sha256: Of its settings.
    """
    report = read_json(run / "report.json")
    study = load_study(run)
    files = [*report["systems"]]
    files += [score_file(name) for name in report.get("worth_of_a_reason", {}).get("variants", {}) if name != OWN]
    test = sorted(study.split("test"), key=lambda one: one.user_id)
    chosen = zip((one.user_id for one in test), study.target_items(test), strict=True)
    stages = [read_manifest(path.parent)["seconds"] for path in run.glob(f"*/{MANIFEST}")]
    return Outcome(
        str(run),
        {key: report[key] for key in _KEPT if key in report},
        {file: _places(study, file) for file in files},
        study.cold(test),
        sha256_of_text(text for pair in chosen for text in pair),
        round(sum(stages), 1),
        settings_sha256,
        code_sha256(),
    )


@cache
def code_sha256() -> str:
    """What all source files of this package were when first asked: the same settings may give other numbers later."""
    return sha256_of_text(path.read_text(encoding="utf-8") for path in sorted(_PACKAGE.rglob("*.py")))


def _places(study: Study, file: str) -> Places:
    table = read_table(study.run / "evaluate" / "scores" / "test" / f"{file}.parquet")
    columns = (table[name].to_pylist() for name in ("user_id", "decision_id", "scores"))
    rows = sorted(zip(*columns, strict=True), key=itemgetter(0))
    scores = [None if row is None else np.array(row) for _, _, row in rows]
    ids = [decision_id for _, decision_id, _ in rows]
    return target_places(scores, [study.sets[one].target_index for one in ids], system=file, decision_ids=ids)


def save_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep an outcome as ``outcome.json`` and ``places.parquet``; some hundred kilobytes for ten thousand users."""
    rows = [
        {"scores": file, "above": above.tolist(), "tied": tied.tolist()}
        for file, (above, tied) in outcome.places.items()
    ]
    write_table(folder / _PLACES, "places", rows)
    beside = {
        "report": outcome.report,
        "cold": np.flatnonzero(outcome.cold).tolist(),
        "chosen_sha256": outcome.chosen_sha256,
        "seconds": outcome.seconds,
        "settings_sha256": outcome.settings_sha256,
        "code_sha256": outcome.code_sha256,
    }
    write_json(folder / _REPORT, beside)


def load_outcome(folder: Path) -> Outcome:
    """What :func:`save_outcome` kept.

    Raises:
        ArtifactError: A file is missing or damaged, or the two are not of one run.
    """
    beside, table = read_json(folder / _REPORT), read_table(folder / _PLACES).to_pylist()
    places = {row["scores"]: (np.array(row["above"]), np.array(row["tied"])) for row in table}
    users = beside["report"]["protocol"]["users"]
    other = sorted(file for file, both in places.items() if {len(one) for one in both} != {users})
    absent = sorted(set(beside["report"]["systems"]) - set(places))
    if other or absent:
        raise ArtifactError(
            f"{folder}: {_REPORT} tells of {users} users; without places of all of them: {', '.join(other + absent)}. "
            "Keep the run's outcome anew."
        )
    cold = np.zeros(users, dtype=bool)
    cold[beside["cold"]] = True
    return Outcome(
        str(folder),
        beside["report"],
        places,
        cold,
        beside["chosen_sha256"],
        beside["seconds"],
        beside["settings_sha256"],
        beside.get("code_sha256", ""),
    )
