"""What a system costs: tokens and seconds of the stages that it rests on, bytes of the models that it loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import read_manifest
from pulse_hf.stages import ROAD

if TYPE_CHECKING:
    from pulse_hf.evaluation.score_book import ScoreBook, System

__all__ = ["STAGES", "cost_of", "cost_of_stages", "rows_kept", "spent"]

STAGES = {stage.word: stage.folder for stage in ROAD if stage.word not in ("world", "evaluate")}
"""Where each stage that a report rests on lies in a run."""


def cost_of(run: Path, book: ScoreBook, known: Mapping[str, System], name: str) -> dict[str, Any]:
    """Tokens and seconds of the stages it rests on and of its own scoring; bytes of the models it loads.

    ``seconds_per_user`` is what one more decision takes once all is fitted: its scoring and, where there is a reason,
    its share of the stage that writes them.

    Args:
        run: The run.
        book: Where its scores and those of its parts are kept, with their seconds.
        known: Every system by name.
        name: The system.
    """
    system = known[name]
    stages = [spent(run, stage, (name, *system.parts)) for stage in system.stages]
    scored = [system, *(known[part] for part in system.parts)]
    scoring = sum(book.beside(one, "test")["seconds"] for one in scored)
    per_user = scoring / max(1, len(book.study.split("test")))
    if "thoughts" in system.stages:
        manifest = read_manifest(run / STAGES["thoughts"])
        per_user += manifest["seconds"] / max(1, rows_kept(manifest["counts"]))
    files = [path for model in system.models for path in [run / model, *(run / model).rglob("*")] if path.is_file()]
    return {
        "tokens": sum(tokens for tokens, _ in stages),
        "seconds": round(sum(seconds for _, seconds in stages) + scoring, 3),
        "seconds_per_user": round(per_user, 6),
        "bytes": sum(path.stat().st_size for path in files),
    }


def spent(run: Path, stage: str, names: Sequence[str]) -> tuple[int, float]:
    """Tokens that an SLM read, wrote or was tuned on in a stage, and the stage's seconds.

    Args:
        run: The run.
        stage: Its word.
        names: A system and what it is joined from.
    """
    manifest = read_manifest(run / STAGES[stage])
    counts = manifest["counts"]
    if stage == "recommender":  # several scorers are tuned in one stage; each system pays for its own
        own = counts["systems"][next((name for name in names if name in counts["systems"]), "pulse")]
        return own["tokens_per_epoch"] * max(1, len(own["validation_hr@1"])), own["seconds"]
    if stage == "baselines":  # likewise
        fits = [counts["fits"][name] for name in names if name in counts["fits"]]
        tokens = (fit.get("tokens_per_epoch", 0) * max(1, len(fit.get("validation_hr@1", ()))) for fit in fits)
        return sum(tokens), sum(fit["seconds"] for fit in fits)
    usage = counts.get("written_by_this_process", {})
    return sum(int(usage.get(kind, 0)) for kind in ("prompt_tokens", "generated_tokens")), manifest["seconds"]


def cost_of_stages(run: Path) -> dict[str, dict[str, Any]]:
    """Seconds and rows of each stage that the run has."""
    found = {}
    for name, folder in STAGES.items():
        if (run / folder).exists():
            manifest = read_manifest(run / folder)
            found[name] = {"seconds": manifest["seconds"], "rows": rows_kept(manifest["counts"])}
    return found


def rows_kept(counts: Mapping[str, Any]) -> int:
    """Rows a stage kept: each stage counts what it makes."""
    if "result" in counts:
        return int(counts["result"]["events"])
    made = next((counts[name] for name in ("rows", "sets", "neighbours", "train") if name in counts), 0)
    if isinstance(made, dict):
        return int(made["kept"] if "kept" in made else sum(made.values()))
    return int(made)
