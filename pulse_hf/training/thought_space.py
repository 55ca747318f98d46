"""Stage ``thought-space``: tune the history and rationale encoders by InfoNCE (paper §4.1, Eq. 1).

Reads ``sequences/`` and ``rationales/``; writes ``thought_space/``: ``model/`` fitted on all users' pairs,
``fold-<f>/`` fitted without the users of fold f (they serve those users' training decisions), and
``metrics.json``, ``figure3.png``. Every evaluation is target-free, whatever the training text was.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence as Series
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pulse_hf import artifacts
from pulse_hf.data.sequences import items_by_id, sequences_by_user
from pulse_hf.models.device import default_device
from pulse_hf.models.embedded import MINILM_ID, commit_of, resolve_model
from pulse_hf.ranges import above, at_least, one_of, shares
from pulse_hf.reasoning.shared_reasons import VECTORS
from pulse_hf.schema import fold_of
from pulse_hf.training.thought_pairs import (
    Pair,
    inputs_sha256,
    latest_pairs,
    pair_texts,
    training_pairs,
    validation_pairs,
    validation_users,
    with_titles,
)

if TYPE_CHECKING:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel
    from pulse_hf.training.thought_space_towers import TrainableSpace

__all__ = ["Fitting", "ThoughtSpaceSettings", "start_model", "train_thought_space"]

logger = logging.getLogger(__name__)

FOLDER = "thought_space"
_FIGURE_ROWS = 60
_MANY_CUT = 0.01  # a share worth a warning


@dataclass(frozen=True)
class ThoughtSpaceSettings:
    """Settings of the stage; "ours" where the paper gives no value or another one is better.

    Args:
        encoder: Folder or Hub id of the encoder that both towers start from (paper: DistilBERT).
        shared_towers: One tower for both kinds of text (ours; paper: two).
        trained_layers: Upper layers that train, the rest stays frozen; ``None`` trains everything (paper).
        projection_dim: Width of the space, 0 for the encoder's own (ours).
        behaviour: ``"paper"``: the training history begins with the target; ``"history"``: target-free (ours).
        max_events: Events a history tells, newest first (ours).
        review_words: Words of each review (ours).
        temperature: Of InfoNCE (lost in the paper's text; ours).
        num_negatives: Negatives drawn per pair from the batch (paper: 10); ``None`` takes all (ours).
        symmetric: Rationales look for their histories, too (ours).
        titles: Fit the chosen items' titles beside their rationales, so that candidates have a place in the space
            (ours).
        all_titles: With ``titles``: those of all training choices, also of the ones without a rationale (ours).
        epochs: Most passes over the pairs (ours).
        batch_size: Pairs per step (ours).
        encoder_learning_rate: Of the trained layers (paper has separate rates; value ours).
        projection_learning_rate: Of the projections (likewise).
        warmup_ratio: Share of the steps with rising rates, cosine decay after (both: paper §5.3).
        weight_decay: Of AdamW (ours).
        patience: Epochs without a better validation MRR before stopping (ours).
        max_history_tokens: Longest history (ours).
        max_rationale_tokens: Longest rationale (ours).
        num_folds: Cross-fitted models beside the full one; 0 for none.
        validation_share: Share of the training users kept for validation, in (0, 1) (ours).
        max_validation_pairs: Most pairs used for validation (ours).
        training_pairs_per_user: Fit on at most so many of each user's latest pairs; ``None`` for all (ours).
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware computes in it.
        max_cache_gib: Most memory for the frozen layers' states; beyond it they are computed in each step.
    """

    encoder: str = MINILM_ID
    shared_towers: bool = True
    trained_layers: int | None = 2
    projection_dim: int = 0
    behaviour: Literal["history", "paper"] = "history"
    max_events: int = 6
    review_words: int = 16
    temperature: float = 0.05
    num_negatives: int | None = 10
    symmetric: bool = False
    titles: bool = False
    all_titles: bool | None = None
    epochs: int = 3
    batch_size: int = 64
    encoder_learning_rate: float = 2e-4
    projection_learning_rate: float = 1e-3
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    patience: int = 2
    max_history_tokens: int = 192
    max_rationale_tokens: int = 96
    num_folds: int = 2
    validation_share: float = 0.1
    max_validation_pairs: int = 1000
    training_pairs_per_user: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_cache_gib: float = 4.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        one_of(self, "behaviour", ("history", "paper"))
        one_of(self, "precision", ("auto", "float32", "bfloat16"))
        at_least(self, 0, "trained_layers", "projection_dim", "review_words", "weight_decay", "max_cache_gib")
        at_least(self, 0, "encoder_learning_rate", "projection_learning_rate")
        at_least(self, 1, "max_events", "num_negatives", "epochs", "patience", "max_validation_pairs")
        at_least(self, 1, "training_pairs_per_user")
        at_least(self, 3, "max_history_tokens", "max_rationale_tokens")  # a token between two that frame it
        above(self, 0, "temperature")
        shares(self, "warmup_ratio")
        if self.num_folds == 1 or self.num_folds < 0:
            raise ValueError(f"num_folds is {self.num_folds}, expected 0 (no cross-fitting) or at least 2.")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}, expected a share in (0, 1).")
        if self.trained_layers == 0 and self.projection_dim == 0:
            raise ValueError("trained_layers=0 and projection_dim=0 leave nothing to train: set one of them.")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 2: negatives come from the batch.")
        if self.max_events < 1:
            raise ValueError(f"max_events is {self.max_events}, expected at least 1: a history is told by its events.")
        if self.all_titles and not self.titles:
            raise ValueError("all_titles asks for titles of more choices: it needs titles=true.")


def train_thought_space(run: Path, settings: ThoughtSpaceSettings, *, seed: int, force: bool = False) -> Path:
    """Train the full model and one per fold.

    Args:
        run: The run's folder, with ``sequences/`` and ``rationales/``.
        settings: The stage's settings.
        seed: The run's seed.
        force: Train anew although the artefact exists with other settings.

    Returns:
        ``run/thought_space``.

    Raises:
        ArtifactError: An input is missing, or the artefact was made from other settings or inputs.
        ValueError: Too few pairs, a rationale of a target that must not train, or a loss that is not finite.
    """
    identity = resolve_model(settings.encoder)[1]
    parents = {name: artifacts.parent_sha256(run / name) for name in ("sequences", "rationales")}
    fingerprint = artifacts.Fingerprint("thought-space", asdict(settings), seed, parents, model=identity)

    def make(work: Path) -> dict[str, Any]:

        rows = artifacts.read_table(run / "rationales" / "rationales.parquet").to_pylist()
        sequences = sequences_by_user(run)
        items = items_by_id(run)
        pairs = training_pairs(rows, sequences, items, settings)
        fitted_on = with_titles(pairs, sequences, items, settings)
        model = start_model(settings)
        report = _fit_all(work, model, pairs, fitted_on[len(pairs) :], settings, seed)
        if artifacts.process() > 0:
            return {}
        artifacts.write_json(work / "metrics.json", report)
        dropped = dict(Counter(row["status"] for row in rows if row["status"] != "ok"))
        return {
            "rows": {"read": len(rows), "kept": len(pairs), "dropped": dropped},
            "inputs_sha256": {"thought-space": inputs_sha256(fitted_on)},
            "truncated": report["truncated"],
            "validation": {name: fitted["validation"] for name, fitted in report["models"].items()},
        }

    artifacts.build(run / FOLDER, fingerprint, make, force=force, together=True)
    return run / FOLDER


def start_model(settings: ThoughtSpaceSettings) -> PulseThoughtSpaceModel:
    """The untrained model with its processor, on the accelerator if there is one."""
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel, PulseThoughtSpaceProcessor

    location, identity = resolve_model(settings.encoder)
    loading = {"revision": commit_of(identity)}
    model = PulseThoughtSpaceModel.from_encoders(
        location, shared_towers=settings.shared_towers, projection_dim=settings.projection_dim, **loading
    )
    model.processor = PulseThoughtSpaceProcessor.from_encoders(
        location,
        max_history_tokens=settings.max_history_tokens,
        max_rationale_tokens=settings.max_rationale_tokens,
        **loading,
    )
    model.config.max_events, model.config.review_words = settings.max_events, settings.review_words
    return model.to(default_device())


class Fitting:
    """Fits of spaces over the same texts: what lies below the trained layers is computed once for all of them.

    Args:
        model: The untrained model with its processor.
        pairs: All pairs.
        settings: Of the stage.
        seed: Decides who validates, batches and drawn negatives.
        twins: Further pairs of the training users, only fitted on, never validated by.
    """

    def __init__(
        self,
        model: PulseThoughtSpaceModel,
        pairs: list[Pair],
        settings: ThoughtSpaceSettings,
        seed: int,
        twins: Series[Pair] = (),
    ) -> None:
        from pulse_hf.training.thought_space_towers import SIDES, TextStates, computes_bf16, splits_exactly

        if len(pairs) < 2:
            raise ValueError(
                f"{len(pairs)} pairs to learn from, expected at least 2. If they are rationales, most texts of the "
                "stage rationales could not be used: look at its manifest.json, take another model or engine."
            )
        self.model, self.pairs, self.settings, self.seed = model, pairs, settings, seed
        self.twins = twins
        self.bf16 = computes_bf16(settings.precision, model.device.type)
        layers = settings.trained_layers
        if layers is not None and not all(
            splits_exactly(model, side, pair_texts(pairs, side), layers) for side in SIDES
        ):
            logger.warning("%s has no plain list of layers to cut at: all of its layers train", settings.encoder)
            layers = None
        model.processor.truncated = dict.fromkeys(SIDES, 0)  # the probe's texts do not count twice
        room = settings.max_cache_gib * 2**30 / len(SIDES)
        self.layers = layers
        self.states = {side: TextStates(model, side, layers, bf16=self.bf16, max_bytes=room) for side in SIDES}
        self.held_out = validation_users(pairs, settings, seed)

    def untrained(self) -> TrainableSpace:
        """The model as it was."""
        from pulse_hf.training.thought_space_towers import TrainableSpace

        return TrainableSpace(self.model, self.states, self.layers)

    def fit(
        self, work: Path, name: str, without_fold: int | None = None
    ) -> tuple[TrainableSpace, list[Pair], dict[str, Any]]:
        """Fit and save one model, on all users or without those of one fold.

        Returns:
            The fitted space, its validation pairs, and its record (empty in processes other than the first).
        """
        from pulse_hf.training.thought_space_fit import fit, validation_quality
        from pulse_hf.training.thought_space_towers import TrainableSpace

        settings, number = self.settings, self.settings.num_folds

        def of_fold(pairs: Series[Pair]) -> list[Pair]:
            return [p for p in pairs if without_fold is None or fold_of(p.user_id, number, self.seed) != without_fold]

        mine = of_fold(self.pairs)
        validation = validation_pairs(mine, self.held_out, settings, self.seed)
        fitting = []
        for some in (mine, of_fold(self.twins)):
            some = [pair for pair in some if pair.user_id not in self.held_out]
            fitting += latest_pairs(some, settings.training_pairs_per_user)
        space = TrainableSpace(copy.deepcopy(self.model), self.states, self.layers)
        maskings = _maskings(validation)
        before = {key: validation_quality(space, validation, masked=masked) for key, masked in maskings}
        fitted = fit(
            space,
            fitting,
            validation,
            settings,
            seed=self.seed + (0 if without_fold is None else without_fold + 1),
            checkpoints=artifacts.Checkpoints(work, name),
        )
        if artifacts.process() > 0:
            return space, validation, {}
        after = {key: validation_quality(space, validation, masked=masked) for key, masked in maskings}
        space.model.save_pretrained(work / name)
        logger.info("%s: validation MRR %.3f -> %.3f", name, before["titles"]["mrr"], after["titles"]["mrr"])
        counts = {"fitted": len(fitting), "validation": len(validation)}
        return space, validation, {"pairs": counts, "validation": {"before": before, "after": after}, **asdict(fitted)}


def _fit_all(
    work: Path,
    model: PulseThoughtSpaceModel,
    pairs: list[Pair],
    twins: list[Pair],
    settings: ThoughtSpaceSettings,
    seed: int,
) -> dict[str, Any]:
    import torch

    fitting = Fitting(model, pairs, settings, seed, twins)
    models: dict[str, Any] = {}
    for fold in (None, *range(settings.num_folds)):
        name = "model" if fold is None else f"fold-{fold}"
        space, validation, record = fitting.fit(work, name, fold)
        if artifacts.process() > 0:
            continue
        models[name] = record
        if fold is None:
            _warn_of_cuts(fitting)
            _figure(work / "figure3.png", fitting.untrained(), space, validation, seed)
            vectors = space.vectors("rationale", [pair.rationale for pair in pairs])
            artifacts.write_tensors(work / VECTORS, {"vectors": torch.from_numpy(vectors)})
    return {
        "behaviour": settings.behaviour,
        "precision": "bfloat16" if fitting.bf16 else "float32",
        "trained_layers": fitting.layers,
        "truncated": dict(model.processor.truncated),
        "models": models,
    }


def _warn_of_cuts(fitting: Fitting) -> None:
    """Say so where many texts are longer than what the towers read; their ends teach nothing and tell nothing."""
    for side, states in fitting.states.items():
        cut, limit = fitting.model.processor.truncated[side], getattr(fitting.model.processor, f"max_{side}_tokens")
        asked = getattr(fitting.settings, f"max_{side}_tokens")
        if cut > _MANY_CUT * len(states):
            logger.warning(
                "of %d %s texts %d have more than %d tokens and lose their ends; %s",
                len(states),
                side,
                cut,
                limit,
                f"raise thought_space.max_{side}_tokens" if limit == asked else "the encoder reads no more",
            )


def _maskings(pairs: Series[Pair]) -> list[tuple[str, bool]]:
    """With the words of titles and without; pairs of nothing but titles have no second reading."""
    told = any((one.history, one.rationale) != (one.masked_history, one.masked_rationale) for one in pairs)
    return [("titles", False), *([("titles_masked", True)] if told else [])]


def _strangers(pairs: Series[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The first pairs, and beside each one the next pair, round and round, that is another user's."""
    own, others = list(pairs[:_FIGURE_ROWS]), []
    for place, pair in enumerate(own):
        half = len(pairs) // 2
        after = (pairs[(place + half + step) % len(pairs)] for step in range(len(pairs)))
        others.append(next((one for one in after if one.user_id != pair.user_id), None))
    both = [(pair, other) for pair, other in zip(own, others, strict=True) if other is not None]
    return [pair for pair, _ in both], [other for _, other in both]


def _figure(path: Path, before: TrainableSpace, after: TrainableSpace, pairs: Series[Pair], seed: int) -> None:
    from pulse_hf.training.thought_space_figure import draw_thought_space

    own, others = _strangers(pairs)

    def vectors(space: TrainableSpace) -> Any:
        history = space.vectors("history", [pair.history for pair in own])
        positive, negative = (space.vectors("rationale", [pair.rationale for pair in some]) for some in (own, others))
        return history, positive, negative

    if len(own) >= 2:
        draw_thought_space(
            path, vectors(before), vectors(after), caption=f"{len(own)} held-out pairs (t-SNE)", seed=seed
        )
