"""The road as code: every stage in order, each reading artefacts and writing one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pulse_hf.artifacts import MANIFEST, models_of, process, write_json
from pulse_hf.data.prepare import PrepareSettings, prepare
from pulse_hf.data.world.stage import is_synthetic, world
from pulse_hf.evaluation.evaluate import evaluate
from pulse_hf.models.embedded import settled
from pulse_hf.reasoning.rationales import rationales
from pulse_hf.reasoning.thoughts import thoughts
from pulse_hf.retrieval.candidates import candidates
from pulse_hf.settings import RunSettings, load_settings
from pulse_hf.stages import ROAD, Stage, stage_named
from pulse_hf.training.baselines import baselines
from pulse_hf.training.scorer import recommender
from pulse_hf.training.sequential import sequential
from pulse_hf.training.thought_space import train_thought_space

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"


_MAKERS: dict[str, Callable[..., Path]] = {
    "world": world,
    "prepare": prepare,
    "sequential": sequential,
    "candidates": candidates,
    "rationales": rationales,
    "thought-space": train_thought_space,
    "thoughts": thoughts,
    "recommender": recommender,
    "baselines": baselines,
    "evaluate": evaluate,
}


def run_stage(stage: Stage, run: Path, settings: RunSettings, *, force: bool = False) -> Path:
    """Run one stage; a finished one whose inputs and settings are the same is skipped at once.

    Args:
        stage: One of :data:`~pulse_hf.stages.ROAD`.
        run: The run folder.
        settings: Of all stages.
        force: Make it anew although its settings or inputs have changed.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: A setting cannot be meant, or there is no data to read.
        ArtifactError: An earlier stage is missing or damaged, or what lies there was made otherwise.
    """
    group: Any = getattr(settings, stage.setting)
    if stage.word == "prepare":
        group = _input_of(run, settings)
    if group is None:
        raise ValueError(
            f"{stage.word}: these settings make no shop of their own; add --preset demo for the embedded one"
        )
    started = time.perf_counter()
    logger.info("%s: %s", stage.word, stage.purpose)
    with settled(models_of(run, stage.setting)):  # the Hub's main may have moved since the run began
        folder = _MAKERS[stage.word](run, group, seed=settings.seed, force=force)
    logger.info("%s: done in %.1f s", stage.word, time.perf_counter() - started)
    return folder


def _input_of(run: Path, settings: RunSettings) -> PrepareSettings:
    """What ``prepare`` reads: the generated shop, or the user's own files."""
    for name in ("reviews", "metadata"):
        found = getattr(settings.prepare, name)
        if settings.world is not None and found:
            raise ValueError(
                f"prepare.{name} is {found!r}, but these settings make a shop of their own (the preset demo does): "
                f"add --preset small, or leave prepare.{name} out"
            )
    if settings.world is not None:
        return replace(
            settings.prepare, reviews=str(run / "world" / "reviews.jsonl"), metadata=str(run / "world" / "items.jsonl")
        )
    if not settings.prepare.reviews:
        raise ValueError(
            "there is no data to read: give --set prepare.reviews=FILE and --set prepare.metadata=FILE "
            "(Amazon 2018 JSON lines; for other files also --set prepare.format=table), or take --preset demo"
        )
    return settings.prepare


def run_road(
    run: Path,
    settings: RunSettings,
    *,
    until: str | None = None,
    force: bool = False,
    launch: Callable[[str], None] | None = None,
) -> Path:
    """Run every stage in order.

    Args:
        run: The run folder, ``runs/<name>``.
        settings: All stages' settings; without a ``world`` group the data in ``prepare`` is read.
        until: Stop after this stage.
        force: Make stages anew whose settings or inputs have changed.
        launch: Runs the stage of a word in several processes; taken for the stages that write.

    Returns:
        The run folder with ``settings.json``; after ``evaluate`` it holds ``report.json`` and ``report.md``.
    """
    if until is not None:
        stage_named(until)
    if settings.world is not None:
        _refuse_other_data(run, settings)
    if not any(run.glob(f"*/{MANIFEST}")):
        _keep(run, settings)
    for stage in ROAD:
        left_out = (stage.word == "world" and settings.world is None) or (
            stage.word == "baselines" and not settings.baselines.systems
        )
        if launch and stage.writes and (force or not (run / stage.folder / MANIFEST).exists()):
            launch(stage.word)
        elif not left_out:
            run_stage(stage, run, settings, force=force)
        if stage.word == until:
            break
    _keep(run, settings)  # not sooner: a stage may have refused them
    return run


def _refuse_other_data(run: Path, settings: RunSettings) -> None:
    """See that nobody asks for a run of their own data, before a world is made that nothing will read."""
    _input_of(run, settings)
    if (run / "sequences" / MANIFEST).exists() and not is_synthetic(run):
        raise ValueError(
            f"{run} holds a run of other data, and these settings make a shop of their own (the preset demo does): "
            "add --preset small and the settings that it was made with, or take another run folder"
        )


def _keep(run: Path, settings: RunSettings) -> None:
    """What single stages of the run take for their settings when nobody names others."""
    if process() == 0:
        write_json(run / SETTINGS, asdict(settings))


def settings_of_run(run: Path) -> RunSettings | None:
    """The settings that a run was made with, or ``None`` where it kept none.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / SETTINGS
    return load_settings(path, RunSettings()) if path.exists() else None


def token_budget(settings: RunSettings) -> dict[str, int]:
    """Upper bounds on the tokens that texts may have, known before anything runs; what is written anew is not in them.

    Only the embedded world's size is known beforehand; for data of your own the bounds are per decision.
    """
    tree = settings.thoughts
    nodes = sum(tree.width**level for level in range(tree.depth + 1))
    users = settings.world.num_users if settings.world else 1

    def least(*limits: int | None) -> int:
        return min(limit for limit in limits if limit is not None)

    longest = settings.world.max_events - 3 if settings.world else None  # training targets with a history
    sets, most = settings.candidates, least(settings.candidates.training_decisions_per_user, longest)
    writing = settings.rationales
    explained = least(users, sets.max_train_users, writing.max_users) * least(
        most, writing.training_decisions_per_user
    )
    decisions = least(users, sets.max_test_users) + least(users, sets.max_validation_users)
    decisions += least(users, sets.max_train_users, tree.max_training_users) * least(
        most, tree.training_decisions_per_user
    )
    return {
        "decisions": decisions,
        "thoughts a decision": nodes,
        "rationale tokens": explained * writing.max_new_tokens,
        "thought tokens": decisions * nodes * settings.thoughts.max_new_tokens,
    }
