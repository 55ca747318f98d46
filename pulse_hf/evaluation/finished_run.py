"""What a finished run holds, read once for the leak audit and for whoever makes parts of the run again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import MANIFEST, read_table, seed_of, settings_of
from pulse_hf.data.sequences import items_by_id, load_sequences
from pulse_hf.reasoning.examples import PromptShape, Thought, load_thoughts
from pulse_hf.reasoning.prompts import PromptBudget, candidate_text
from pulse_hf.reasoning.tree_of_thought import Node
from pulse_hf.retrieval.candidates import load_candidates
from pulse_hf.schema import CandidateSet, Decision, Item, Sequence, Split

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FinishedRun"]


@dataclass(frozen=True)
class FinishedRun:
    """A run's finished artefacts, read once.

    Args:
        run: The run folder.
    """

    run: Path

    @cached_property
    def sequences(self) -> list[Sequence]:
        """The users' sequences as prepared."""
        return load_sequences(self.run)

    @cached_property
    def items(self) -> dict[str, Item]:
        """The catalogue."""
        return items_by_id(self.run)

    @cached_property
    def sets(self) -> list[CandidateSet]:
        """The frozen candidate sets of all splits."""
        return load_candidates(self.run)

    def decisions(self, split: Split) -> list[Decision]:
        """The decisions of a split that have a candidate set."""
        return [one.decision for one in self.sets if one.split == split]

    def has(self, folder: str) -> bool:
        """Whether a stage has finished; a run of baselines alone has no thoughts."""
        return (self.run / folder / MANIFEST).exists()

    def pulled(self, folder: str) -> bool:
        """Whether an artefact came from the Hub: what it was made from is not here."""
        return "pulled_from" in self.settings(folder)

    def rows(self, path: str) -> list[dict[str, Any]]:
        """One table of the run."""
        return list(read_table(self.run / path).to_pylist())

    def settings(self, folder: str) -> dict[str, Any]:
        """The settings that made an artefact, and its seed under ``"seed"``."""
        return settings_of(self.run / folder) | {"seed": seed_of(self.run / folder)}

    def budget(self, folder: str) -> PromptBudget:
        """The prompt budget that a stage worked with."""
        return PromptBudget(**self.settings(folder)["budget"])

    @cached_property
    def thoughts(self) -> dict[str, Thought]:
        """The chosen reason and its agreement by decision id."""
        return load_thoughts(self.run)

    @cached_property
    def trees(self) -> dict[str, list[Node]]:
        """The stored nodes of each decision's tree, by their number."""
        columns = ("node", "parent", "depth", "status", "text", "raw", "log_likelihood", "agreement")
        trees: dict[str, list[Node]] = {}
        for row in sorted(self.rows("thoughts/trees.parquet"), key=lambda row: int(row["node"])):
            trees.setdefault(row["decision_id"], []).append(Node(*(row[name] for name in columns)))
        return trees

    @cached_property
    def branch(self) -> Callable[[str], str]:
        """What a scorer reads of one candidate, by item id."""
        return cache(lambda item_id: candidate_text(self.items[item_id]))

    @cached_property
    def scorer(self) -> Callable[[str], tuple[PromptShape, Callable[[str], bool]]]:
        """What a tuned scorer is shown, and whether a prompt fits into it, by system; prompts are measured once."""
        return cache(lambda system: _scorer(self.run / "recommender" / system))

    @cached_property
    def stored_lent(self) -> dict[str, list[str]]:
        """The items that similar users lent to each decision, as stored."""
        return {row["decision_id"]: row["item_ids"] for row in self.rows("sequential/neighbours.parquet")}


def _scorer(folder: Path) -> tuple[PromptShape, Callable[[str], bool]]:
    from pulse_hf.models.embedded import commit_of, pinned_name, resolve_model
    from pulse_hf.models.scorer.adapter import processor_of, read_record

    record = read_record(folder)
    path, commit = resolve_model(pinned_name(record.base))[0], commit_of(record.base)
    # Texts alone are compared here; who votes for what is an input of its own ("shared-reasons").
    shape = replace(PromptShape.from_dict(record.prompt), shared_temperature=None)
    return shape, cache(processor_of(record, path, commit).prompt_fits)
