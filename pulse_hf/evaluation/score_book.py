"""What scores: a name, a way to score, what it rests on; and the book in which scores are kept.

Scores are kept on disk as they are made, so an interrupted evaluation resumes, and whatever is built
from other systems' scores (``fusion``, ``pulse-fused``) reuses the very same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pulse_hf.artifacts import ArtifactError, read_json, read_table, write_json, write_table
from pulse_hf.evaluation.protocol import Study
from pulse_hf.schema import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Row = NDArray[np.float64] | None
    Scores = Callable[[Study, Sequence[Decision]], Sequence[Row] | "Fitted"]

__all__ = ["Fitted", "ScoreBook", "System"]


class Fitted(NamedTuple):
    """Scores of a system that is fitted to give them, and the constants that were fitted."""

    rows: Sequence[Row]
    stacker: dict[str, Any]


@dataclass(frozen=True)
class System:
    """One row of the report.

    Args:
        name: The name in the report.
        scores: Scores of every candidate of every decision; ``None`` for an invalid answer.
        stages: Stages whose work it rests on, for its cost.
        models: Files or folders of the run that it loads, for its size.
        parts: Systems whose scores it joins.
    """

    name: str
    scores: Scores
    stages: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


class ScoreBook:
    """Scores by system and split, computed once and kept in ``<folder>/<split>/<system>.parquet``.

    Args:
        folder: Where the tables lie.
        study: The shared data.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder = folder
        self.study = study

    def rows(self, system: System, split: str) -> list[Row]:
        """The system's scores of all decisions of a split, in the study's order.

        Args:
            system: What scores; not asked if its scores are kept.
            split: ``validation`` or ``test``.

        Raises:
            ArtifactError: The kept scores are of other decisions.
            ValueError: The system gave other numbers of rows or of scores than there are decisions or candidates.
        """
        decisions = self.study.split(split)
        path = self.folder / split / f"{system.name}.parquet"
        # The file beside the scores is written last, so both are there or both are made again.
        if not path.with_name(f"{system.name}.json").exists():
            started = time.perf_counter()
            found = system.scores(self.study, decisions)
            rows, stacker = found if isinstance(found, Fitted) else (found, None)
            self._write(path, system.name, decisions, rows)
            beside = {"seconds": round(time.perf_counter() - started, 3), "stacker": stacker}
            write_json(path.with_name(f"{system.name}.json"), beside)
        return self._read(path, decisions)

    def beside(self, system: System, split: str) -> dict[str, Any]:
        """What is kept beside the scores: ``seconds`` that scoring took, and the fitted ``stacker`` if any."""
        return dict(read_json(self.folder / split / f"{system.name}.json"))

    def _write(self, path: Path, name: str, decisions: Sequence[Decision], rows: Sequence[Row]) -> None:
        if len(rows) != len(decisions):
            raise ValueError(f"{name} gave {len(rows)} rows of scores for {len(decisions)} decisions")
        table = []
        for decision, row, items in zip(decisions, rows, self.study.candidates(decisions), strict=True):
            if row is not None and len(row) != len(items):
                raise ValueError(
                    f"{name}, decision {decision.decision_id}: {len(row)} scores for {len(items)} candidates"
                )
            scores = None if row is None else [float(value) for value in row]
            table.append(
                {**asdict(decision), "decision_id": decision.decision_id, "item_ids": items, "scores": scores}
            )
        write_table(path, "scores", table)

    def _read(self, path: Path, decisions: Sequence[Decision]) -> list[Row]:
        table = read_table(path)
        if table["decision_id"].to_pylist() != [d.decision_id for d in decisions]:
            raise ArtifactError(f"{path} holds other decisions than the candidates; delete it to score anew")
        return [None if row is None else np.array(row) for row in table["scores"].to_pylist()]
