"""Stage ``sequential``: SASRec with and without text, its fold models, and each decision's similar users."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf import artifacts
from pulse_hf.ranges import above, at_least, one_of, shares
from pulse_hf.schema import Decision, fold_of, stable_hash

if TYPE_CHECKING:
    from torch import Tensor

    from pulse_hf import schema
    from pulse_hf.models.sasrec import PulseSASRecModel
    from pulse_hf.training.sasrec import Auxiliary, Build

__all__ = ["SequentialSettings", "inputs_sha256", "sequential", "training_sequences"]

_logger = logging.getLogger(__name__)
_MANY_CUT = 0.01  # a share worth a warning
FOLDER = "sequential"


@dataclass(frozen=True)
class SequentialSettings:
    """Settings of the stage; the paper's own values are lost in the seed text, so all are ours unless said.

    Args:
        dim: Width of item and user vectors (ours).
        num_layers: Self-attention blocks (Kang & McAuley 2018: 2).
        num_heads: Attention heads.
        dropout: Share of activations dropped in training.
        max_length: The most recent events a history is cut to (Kang & McAuley 2018 on Amazon: 50).
        loss: ``"ce"``, ``"gbce"`` or ``"bce"``.
        num_negatives: Sampled negatives per target of ``"gbce"`` and ``"bce"``.
        epochs: Epochs at most.
        patience: Epochs without a better validation NDCG@10 before stopping.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        batch_size: Training targets per step; fewer where an epoch would have under 20 steps.
        max_validation_users: Users whose validation targets choose the epoch; ``None`` for all.
        encoder: Frozen text encoder of the items.
        text_tokens: An item's text is cut to so many tokens for the encoder.
        num_neighbours: Similar users per decision.
        neighbour_items: Items they lend at most.
        num_folds: Folds of cross-fitting, at least 2.
        training_decisions_per_user: The last so many training targets of each user get similar users.
    """

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.3
    max_length: int = 50
    loss: str = "ce"
    num_negatives: int = 64
    epochs: int = 60
    patience: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 512
    max_validation_users: int | None = 5_000
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    text_tokens: int = 64
    num_neighbours: int = 10
    neighbour_items: int = 8
    num_folds: int = 2
    training_decisions_per_user: int = 2

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        at_least(self, 1, "dim", "num_layers", "num_heads", "max_length", "num_negatives", "epochs", "patience")
        at_least(self, 1, "batch_size", "max_validation_users", "text_tokens", "num_neighbours", "neighbour_items")
        at_least(self, 1, "training_decisions_per_user")
        at_least(self, 0, "weight_decay")
        above(self, 0, "learning_rate")
        shares(self, "dropout", below_one=True)
        one_of(self, "loss", ("ce", "bce", "gbce"))
        if self.dim % self.num_heads:
            raise ValueError(f"dim is {self.dim}, expected a multiple of num_heads ({self.num_heads}).")
        if self.num_folds < 2:
            raise ValueError(f"num_folds is {self.num_folds}, expected at least 2 for cross-fitting.")


def training_sequences(sequences: Iterable[schema.Sequence]) -> list[list[str]]:
    """What every fit of this stage learns from: the training events of each user, in the order given.

    >>> from pulse_hf.schema import Sequence as S
    >>> training_sequences([S("u", ("a", "b", "c", "d"), (), (), ())])
    [['a', 'b']]
    """
    return [list(sequence.training().item_ids) for sequence in sequences]


def inputs_sha256(sequences: Sequence[schema.Sequence]) -> dict[str, str]:
    """Hashes of what reaches the fits and of what similar users can lend, for the leak audit.

    Both must stay the same when every validation and test target is swapped.
    """
    from pulse_hf.retrieval.similar_users import lendable

    fitted = ("\x1f".join(row) for row in training_sequences(sequences))
    lent = (
        "\x1f".join([user_id, *events.item_ids, *map(str, events.timestamps)])
        for user_id, events in lendable(sequences).items()
    )
    return {"sequential": artifacts.sha256_of_text(fitted), "neighbours": artifacts.sha256_of_text(lent)}


def sequential(run: Path, settings: SequentialSettings, *, seed: int, force: bool = False) -> Path:
    """Fit SASRec on the training events and find the similar users of every decision.

    *Input*: ``sequences/``. *Output* in ``sequential/``: ``sasrec/``, ``sasrec+text/`` and ``sasrec-fold-<f>/``
    (fitted without the users of fold f, who get their training decisions' similar users from it), each as
    ``save_pretrained`` writes it; ``item_vectors.safetensors`` (frozen text vectors in catalogue order);
    ``neighbours.parquet`` for all validation and test decisions and the last training decisions of each user.

    Args:
        run: The run's folder.
        settings: See :class:`SequentialSettings`.
        seed: The run's seed.
        force: Make anew although another version is there.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: The data is too small to fit on.
    """
    from pulse_hf.models.embedded import resolve_model

    fingerprint = artifacts.Fingerprint(
        stage=FOLDER,
        settings=asdict(settings),
        seed=seed,
        parents={"sequences": artifacts.parent_sha256(run / "sequences")},
        model=resolve_model(settings.encoder)[1],
    )

    def make(work: Path) -> dict[str, Any]:
        from pulse_hf.data.sequences import load_items, load_sequences

        return _make(work, load_sequences(run), load_items(run), settings, seed=seed)

    artifacts.build(run / FOLDER, fingerprint, make, force=force, together=True)
    return run / FOLDER


def _make(
    work: Path, sequences: list[schema.Sequence], items: list[schema.Item], settings: SequentialSettings, *, seed: int
) -> dict[str, Any]:
    import torch

    from pulse_hf.data.sequences import decisions, training_decisions
    from pulse_hf.models.text_encoder import count_cut, encode_texts

    fits = Fits(work, sequences, [item.item_id for item in items], settings, seed=seed)
    _logger.info("encoding %d item texts with %s", len(items), settings.encoder)
    texts = [item.item_text for item in items]
    vectors = torch.from_numpy(encode_texts(texts, settings.encoder, max_tokens=settings.text_tokens))
    cut = count_cut(texts, settings.encoder, max_tokens=settings.text_tokens)
    if cut > _MANY_CUT * len(texts):
        _logger.warning(
            "of %d of %d item texts only the first %d tokens are read", cut, len(texts), settings.text_tokens
        )
    if artifacts.process() == 0:
        artifacts.write_tensors(work / "item_vectors.safetensors", {"item_vectors": vectors})
    model = fits.fit("sasrec")
    rows = fits.neighbour_rows(model, [*decisions(sequences, "test"), *decisions(sequences, "validation")])
    fits.fit("sasrec+text", text_features=vectors)
    of_training = training_decisions(sequences, settings.training_decisions_per_user)
    for fold in range(settings.num_folds):
        mine = [one for one in of_training if fold_of(one.user_id, settings.num_folds, seed) == fold]
        rows += fits.neighbour_rows(fits.fit(f"sasrec-fold-{fold}", without_fold=fold), mine)
    if artifacts.process() > 0:
        return {}
    artifacts.write_table(work / "neighbours.parquet", "neighbours", rows)
    return {
        "users": len(sequences),
        "items": len(items),
        "item_texts_cut": cut,
        "neighbours": len(rows),
        "fits": fits.reports,
        "inputs_sha256": inputs_sha256(sequences),
    }


class Fits:
    """The models of one run of the stage: what they share, and a report of each.

    Args:
        work: Where models are saved.
        sequences: All users.
        item_ids: The catalogue in its order.
        settings: Of the stage.
        seed: The run's seed.
    """

    def __init__(
        self,
        work: Path,
        sequences: Sequence[schema.Sequence],
        item_ids: Sequence[str],
        settings: SequentialSettings,
        *,
        seed: int,
    ) -> None:
        from pulse_hf.retrieval.similar_users import lendable

        self.work = work
        self.settings = settings
        self.seed = seed
        self.sequences = {sequence.user_id: sequence for sequence in sequences}
        self.index = {item_id: index for index, item_id in enumerate(item_ids, start=1)}
        self.user_ids = list(self.sequences)
        self.training = [self._indices(row) for row in training_sequences(sequences)]
        self.lenders = lendable(sequences)
        self.reports: dict[str, Any] = {}

    def _indices(self, item_ids: Iterable[str]) -> list[int]:
        try:
            return [self.index[item_id] for item_id in item_ids]
        except KeyError as error:
            raise ValueError(f"item {error} is in a sequence but not in the catalogue; run prepare again") from None

    def _history(self, decision: Decision) -> list[int]:
        return self._indices(self.sequences[decision.user_id].before(decision.position).item_ids)

    def fit(
        self,
        name: str,
        *,
        without_fold: int | None = None,
        text_features: Tensor | None = None,
        start: PulseSASRecModel | None = None,
        auxiliary: Auxiliary | None = None,
        build: Build | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> PulseSASRecModel:
        """Fit, save and report one model, on all users or without those of one fold; as ``fit_sasrec`` is told."""
        from pulse_hf.data.sequences import decisions, sample_decisions
        from pulse_hf.models.sasrec import PulseSASRecModel
        from pulse_hf.training.sasrec import fit_sasrec

        number = self.settings.num_folds
        kept = {user_id for user_id in self.user_ids if fold_of(user_id, number, self.seed) != without_fold}
        users = [self.sequences[user_id] for user_id in self.user_ids if user_id in kept]
        chosen = sample_decisions(decisions(users, "validation"), self.settings.max_validation_users, self.seed)
        model, report = fit_sasrec(
            [row for user_id, row in zip(self.user_ids, self.training, strict=True) if user_id in kept],
            [(self._history(one), self.index[self.sequences[one.user_id].item_ids[one.position]]) for one in chosen],
            len(self.index),
            self.settings,
            seed=stable_hash(name, self.seed) % 2**31,
            text_features=text_features,
            name=name,
            checkpoints=artifacts.Checkpoints(self.work, name),
            start=start,
            auxiliary=auxiliary,
            build=build or PulseSASRecModel,
            rates=rates,
        )
        if artifacts.process() == 0:
            model.save_pretrained(self.work / name)
        self.reports[name] = asdict(report)
        return model

    def neighbour_rows(self, model: PulseSASRecModel, wanted: Sequence[Decision]) -> list[Mapping[str, Any]]:
        """Rows of ``neighbours.parquet``: who is similar at the decision, by this model, and what they lend.

        A decision is compared, as of just before it, with the training events of every other user who has some.
        """
        from pulse_hf.retrieval.similar_users import NO_USER, lend_items, neighbours

        if not wanted or artifacts.process() > 0:
            return []
        # Cut by time, who came later has no training event, and nothing to be similar in or to lend.
        members = [(user_id, row) for user_id, row in zip(self.user_ids, self.training, strict=True) if row]
        pool_ids = [user_id for user_id, _ in members]
        pool = model.user_vectors([row for _, row in members]).cpu().numpy()
        queries = model.user_vectors([self._history(one) for one in wanted]).cpu().numpy()
        query_users = [one.user_id for one in wanted]
        places, cosines = neighbours(queries, query_users, pool, pool_ids, self.settings.num_neighbours)
        rows: list[Mapping[str, Any]] = []
        for decision, row_places, row_cosines in zip(wanted, places.tolist(), cosines.tolist(), strict=True):
            found = [place for place in row_places if place != NO_USER]
            sequence = self.sequences[decision.user_id]
            users = [pool_ids[place] for place in found]
            lent = lend_items(
                users,
                row_cosines[: len(found)],
                self.lenders,
                history=sequence.before(decision.position).item_ids,
                before=sequence.timestamps[decision.position] if sequence.timestamps else None,
                max_items=self.settings.neighbour_items,
            )
            rows.append(
                {
                    **asdict(decision),
                    "decision_id": decision.decision_id,
                    "user_ids": users,
                    "similarities": row_cosines[: len(found)],
                    "item_ids": lent,
                }
            )
        return rows
