"""Stage ``baselines``: the learned rows that PULSE is compared with and that no other stage needs.

Each is fitted on training events alone, with the run's own budgets, so that no row wins by tuning: ``encoder-tuned``
trains as the Thought Space does (same encoder, steps, batches), only from a history's titles to the next item's title
instead of to a rationale; it is the control for what rationales add. ``sasrec-bce`` (one sampled negative, Kang &
McAuley 2018) and ``sasrec-gbce`` (Petrov & Macdonald 2023) are SASRec under the losses that most papers compare with;
``duorec`` (Qiu et al. 2022) and ``ec4srec`` (Wang et al. 2022) are SASRec with a contrastive loss beside its own;
``morec`` (Yuan et al. 2023) and ``ctrl`` (Li et al. 2023) bring a text encoder in while they train; ``a-llmrec`` (Kim
et al. 2024) and ``a-llmrec+reason`` put SASRec's knowledge into the scorer's language model, frozen. Each has a file
in ``baseline_fits``.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pulse_hf import artifacts
from pulse_hf.ranges import at_least, some_of
from pulse_hf.stages import A_LLMREC, BASELINES
from pulse_hf.training.baseline_fits.material import Material
from pulse_hf.training.sequential import SequentialSettings
from pulse_hf.training.thought_pairs import Pair, latest_pairs, next_title_pairs, validation_users
from pulse_hf.training.thought_space import ThoughtSpaceSettings

logger = logging.getLogger(__name__)

__all__ = ["BaselineSettings", "baselines"]


@dataclass(frozen=True)
class BaselineSettings:
    """What is fitted.

    Args:
        systems: Some of :data:`pulse_hf.reasoning.titles.BASELINES`.
        num_titles: Titles of a history that ``encoder-tuned`` reads, newest first.

    Raises:
        ValueError: A system is unknown, or the number is not positive.
    """

    systems: tuple[str, ...] = BASELINES
    num_titles: int = 5

    def __post_init__(self) -> None:
        some_of(self, "systems", BASELINES)
        at_least(self, 1, "num_titles")


def baselines(run: Path, settings: BaselineSettings, *, seed: int, force: bool = False) -> Path:
    """Fit the learned baselines of a run.

    *Input*: ``sequences/``, and the settings of ``sequential/`` and ``thought_space/`` (of a space of all titles also
    what it and ``rationales/`` count, so that ``encoder-tuned`` takes no fewer steps); for A-LLMRec also
    ``sequential/``, ``candidates/`` and ``thoughts/`` themselves, and the settings of ``recommender/``. *Output* in
    ``baselines/``: one folder per system, as ``save_pretrained`` writes it.

    Args:
        run: The run's folder.
        settings: Which ones.
        seed: The run's seed.
        force: Make anew although another version is there.

    Returns:
        The artefact's folder.

    Raises:
        ArtifactError: A parent is missing, or the artefact was made from other settings or inputs.
    """
    from pulse_hf.models.embedded import resolve_model

    space = ThoughtSpaceSettings(**artifacts.settings_of(run / "thought_space"))
    sequential = SequentialSettings(**artifacts.settings_of(run / "sequential"))
    budgets: dict[str, Any] = {"thought_space": asdict(space), "sequential": asdict(sequential)}
    counted = space.all_titles and "encoder-tuned" in settings.systems
    parents = ["sequences", *(("rationales", "thought_space") if counted else ())]
    if set(settings.systems) & set(A_LLMREC):
        scorer = artifacts.settings_of(run / "recommender")
        budgets |= {"recommender": scorer, "language_model": resolve_model(scorer["base_model"])[1]}
        parents += ["sequential", "candidates", "thoughts"]
    folder = run / "baselines"
    if artifacts.num_processes() > 1 and (force or not (folder / artifacts.MANIFEST).exists()):
        raise ValueError(
            f"{folder}: the learned baselines are fitted by one process, found {artifacts.num_processes()}; run "
            "this stage alone (pulse baselines --run ...), then launch the others again."
        )
    fingerprint = artifacts.Fingerprint(
        stage="baselines",
        settings=asdict(settings) | budgets,
        seed=seed,
        parents={name: artifacts.parent_sha256(run / name) for name in parents},
        model=resolve_model(space.encoder)[1],
    )

    def make(work: Path) -> dict[str, Any]:
        from pulse_hf.data.sequences import load_items, load_sequences
        from pulse_hf.training.sequential import inputs_sha256

        sequences = load_sequences(run)
        material = Material(run, work, sequences, load_items(run), space, sequential, settings.num_titles, seed)
        pairs = next_title_pairs(sequences, material.item_of, settings.num_titles)
        fits = {name: _timed(name, material, pairs) for name in settings.systems}
        return {
            "fits": fits,
            "inputs_sha256": {
                "baselines": artifacts.sha256_of_text(
                    text for one in pairs for text in (one.training_history, one.rationale)
                ),
                "sequential": inputs_sha256(sequences)["sequential"],
                **{name: fits[name].pop("inputs_sha256") for name in settings.systems if name in A_LLMREC},
            },
        }

    artifacts.build(folder, fingerprint, make, force=force)
    return folder


def _timed(name: str, material: Material, pairs: list[Pair]) -> dict[str, Any]:
    """A fit with the seconds it took, so that no system is charged for another's."""
    started = time.perf_counter()
    return {**_fit(name, material, pairs), "seconds": round(time.perf_counter() - started, 3)}


def _fit(name: str, material: Material, pairs: list[Pair]) -> dict[str, Any]:
    """Fit one system and save it in a folder of its name; what happened goes into the manifest."""
    match name:
        case "encoder-tuned":
            return _encoder(material, pairs)
        case "sasrec-bce":
            return _sasrec(name, material, loss="bce", num_negatives=1)
        case "sasrec-gbce":
            return _sasrec(name, material, loss="gbce")
        case "duorec":
            from pulse_hf.training.baseline_fits.contrast import fit_contrastive
            from pulse_hf.training.baseline_fits.duorec import DuoRecLoss

            return fit_contrastive(name, material, DuoRecLoss)
        case "ec4srec":
            from pulse_hf.training.baseline_fits.contrast import fit_contrastive
            from pulse_hf.training.baseline_fits.ec4srec import EC4SRecLoss

            return fit_contrastive(name, material, EC4SRecLoss)
        case "a-llmrec" | "a-llmrec+reason":
            from pulse_hf.training.baseline_fits.a_llmrec import fit_a_llmrec

            return fit_a_llmrec(name, material)
        case "morec":
            from pulse_hf.training.baseline_fits.morec import morec

            return morec(material)
        case "ctrl":
            from pulse_hf.training.baseline_fits.ctrl import ctrl

            return ctrl(material)
        case _:
            raise ValueError(f"no fit for {name!r}")


def _encoder(material: Material, pairs: list[Pair]) -> dict[str, Any]:
    """The Thought Space's own training on other pairs, without folds."""
    from pulse_hf.training.thought_space import Fitting, start_model

    space = material.space
    # A space with the titles of its pairs takes two steps where this takes one; equal budgets are equal steps.
    passes = 2 if space.titles else 1
    once = replace(space, titles=False, all_titles=None, epochs=passes * space.epochs)
    alone = replace(once, num_folds=0, behaviour="history")
    if space.all_titles:
        alone = _of_equal_steps(material, pairs, alone)
    model = start_model(alone)
    return Fitting(model, pairs, alone, material.seed).fit(material.work, "encoder-tuned")[2]


def _of_equal_steps(material: Material, pairs: list[Pair], alone: ThoughtSpaceSettings) -> ThoughtSpaceSettings:
    """The settings with at least as many steps as a space of all titles, and no more people kept for validation."""
    from pulse_hf.training.thought_space_fit import num_batches

    rows = artifacts.read_table(material.run / "rationales" / "rationales.parquet").to_pylist()
    users = {pair.user_id for pair in pairs}
    explained = len(users & {row["user_id"] for row in rows if row["status"] == "ok"}) / len(users)
    alone = replace(alone, validation_share=material.space.validation_share * explained)
    held_out = validation_users(pairs, alone, material.seed)
    own = latest_pairs([one for one in pairs if one.user_id not in held_out], alone.training_pairs_per_user)
    fitted = artifacts.read_json(material.run / "thought_space" / "metrics.json")["models"]["model"]["pairs"]["fitted"]
    steps, own_steps = (num_batches(rows, alone.batch_size) for rows in (fitted, len(own)))
    return replace(alone, epochs=math.ceil(material.space.epochs * steps / own_steps))


def _sasrec(name: str, material: Material, **objective: Any) -> dict[str, Any]:
    """SASRec under a sampled loss, with three times the epochs, of which it may wait one third for a rise.

    Such a loss stands still before it falls (gBCE on Luxury Beauty: 18 epochs at NDCG@10 .01, then .18; on Gift Cards
    50 at .11, then .18), so that the full softmax's patience would end it at the start.
    """
    own = material.sequential
    fits = material.fits(replace(own, epochs=3 * own.epochs, patience=max(own.patience, own.epochs), **objective))
    fits.fit(name)
    return dict(fits.reports[name])
