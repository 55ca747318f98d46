"""Stage ``candidates``: the frozen, hashed sets that every system ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_hf import artifacts
from pulse_hf.ranges import at_least, one_of
from pulse_hf.schema import SPLITS, CandidateSet, Decision, stable_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pulse_hf import schema

__all__ = [
    "CandidateSettings",
    "candidate_set",
    "candidates",
    "candidates_sha256",
    "chosen_decisions",
    "draw_candidates",
    "load_candidates",
]

_logger = logging.getLogger(__name__)
FOLDER = "candidates"
_SAMPLINGS = ("uniform", "popularity", "full")
_MAX_FULL_MEMBERS = 50_000_000  # ours: ids in all full sets together, some gigabytes


@dataclass(frozen=True)
class CandidateSettings:
    """Settings of the stage.

    Args:
        num_negatives: Negatives beside the one target (paper §5.1: 9).
        sampling: ``"uniform"`` over the catalogue (paper §5.1), or ``"popularity"``: in proportion to the items'
            training events, so that popularity alone does not help (an item without any is never a negative).
            ``"full"``: everything the person had not chosen, at test and validation time; training sets stay
            uniform samples.
        training_decisions_per_user: The last so many training targets of each user get a set (ours).
        max_test_users: Evaluate on a stored sample of this many users; ``None`` for all (ours).
        test_users_seed: Seed of that sample; ``None`` takes the run's. Runs of several seeds that are to be pooled
            need the same users (ours).
        max_validation_users: The same for validation (ours).
        max_train_users: The same for the training decisions (ours).
    """

    num_negatives: int = 9
    sampling: str = "uniform"
    training_decisions_per_user: int = 2
    max_test_users: int | None = None
    test_users_seed: int | None = None
    max_validation_users: int | None = None
    max_train_users: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        one_of(self, "sampling", _SAMPLINGS)
        at_least(self, 1, "num_negatives", "training_decisions_per_user")
        at_least(self, 1, "max_test_users", "max_validation_users", "max_train_users")
        at_least(self, 0, "test_users_seed")


def candidates(run: Path, settings: CandidateSettings, *, seed: int, force: bool = False) -> Path:
    """Draw the candidate sets of the test, validation and training decisions of a run.

    A sample of users (``max_*_users``) is drawn by a stable hash: a smaller one is part of a larger one.

    *Input*: ``sequences/``. *Output columns* of ``candidates/candidates.parquet``: the decision, ``item_ids``
    (shuffled), ``target_index``. The manifest's counts hold ``candidates_sha256`` per split.

    Args:
        run: The run's folder.
        settings: How many, for whom.
        seed: The run's seed.
        force: Make anew although another version is there.

    Returns:
        The artefact's folder.

    Raises:
        ValueError: Nobody has a target, or the catalogue is too small.
    """
    facts = asdict(settings)
    if settings.test_users_seed is None:  # artefacts made before there was this setting stay what they are
        del facts["test_users_seed"]
    fingerprint = artifacts.Fingerprint(
        stage=FOLDER,
        settings=facts,
        seed=seed,
        parents={"sequences": artifacts.parent_sha256(run / "sequences")},
    )

    def make(work: Path) -> dict[str, object]:
        from pulse_hf.data.sequences import load_items, load_sequences

        sequences = load_sequences(run)
        chosen = chosen_decisions(sequences, settings, seed=seed)
        if not chosen:
            raise ValueError(
                f"{run}: none of the {len(sequences):,} users has a target, which takes three events of a person "
                "(leave-one-out), or a split by time or people that gives some"
            )
        sets = draw_candidates(sequences, [item.item_id for item in load_items(run)], chosen, settings, seed=seed)
        rows = (
            {
                **asdict(decision),
                "decision_id": one.decision_id,
                "item_ids": one.item_ids,
                "target_index": one.target_index,
            }
            for decision, one in zip(chosen, sets, strict=True)
        )
        artifacts.write_table(work / "candidates.parquet", "candidates", rows)
        hashes = {split: candidates_sha256(one for one in sets if one.split == split) for split in SPLITS}
        return {
            "sets": {split: sum(one.split == split for one in sets) for split in SPLITS},
            "candidates_sha256": hashes,
            # The leak audit rebuilds the training rows from a world with swapped targets and compares.
            "inputs_sha256": {"candidates": hashes["train"]},
        }

    artifacts.build(run / FOLDER, fingerprint, make, force=force)
    return run / FOLDER


def chosen_decisions(
    sequences: Sequence[schema.Sequence], settings: CandidateSettings, *, seed: int
) -> list[Decision]:
    """The decisions of all splits that get a set: test, then validation, then training.

    Args:
        sequences: All users.
        settings: How many users and how many training targets of each.
        seed: Seed of the sample of users.
    """
    from pulse_hf.data import sequences as data

    training = data.training_decisions(sequences, settings.training_decisions_per_user)
    test_seed = seed if settings.test_users_seed is None else settings.test_users_seed
    return [
        *data.decisions_of_users(data.decisions(sequences, "test"), settings.max_test_users, test_seed),
        *data.decisions_of_users(data.decisions(sequences, "validation"), settings.max_validation_users, seed),
        *data.decisions_of_users(training, settings.max_train_users, seed, purpose="training"),
    ]


def draw_candidates(
    sequences: Sequence[schema.Sequence],
    item_ids: Sequence[str],
    decisions: Sequence[Decision],
    settings: CandidateSettings,
    *,
    seed: int,
    shuffle: bool = True,
) -> list[CandidateSet]:
    """One candidate set per decision, in the order given; pure, so that the leak audit can call it.

    Args:
        sequences: All users.
        item_ids: The catalogue; its order does not matter.
        decisions: For which choices.
        settings: ``num_negatives`` and ``sampling`` are read.
        seed: The run's seed.
        shuffle: ``False`` leaves the target first and the negatives in drawn order, so that the first of them are
            a smaller draw of the same kind.

    Raises:
        ValueError: A target is not in the catalogue, or too few items are left to draw from.
    """
    catalogue = sorted(item_ids)
    place_of = {item_id: place for place, item_id in enumerate(catalogue)}
    by_user = {sequence.user_id: sequence for sequence in sequences}
    weights = _training_events(sequences, place_of) if settings.sampling == "popularity" else None
    full = [decision for decision in decisions if settings.sampling == "full" and decision.split != "train"]
    if len(full) * len(catalogue) > _MAX_FULL_MEMBERS:
        raise ValueError(
            f"{len(full):,} full sets of {len(catalogue):,} items do not fit; lower max_test_users and "
            "max_validation_users, or sample negatives"
        )
    return [
        candidate_set(
            by_user[decision.user_id],
            decision,
            catalogue,
            place_of,
            num_negatives=None
            if settings.sampling == "full" and decision.split != "train"
            else settings.num_negatives,
            seed=seed,
            weights=weights,
            shuffle=shuffle,
        )
        for decision in decisions
    ]


def _training_events(sequences: Sequence[schema.Sequence], place_of: Mapping[str, int]) -> NDArray[np.float64]:
    """How often each item was chosen in training events; no validation or test target counts."""
    import numpy as np

    places = [place_of[item_id] for sequence in sequences for item_id in sequence.training().item_ids]
    return np.bincount(places, minlength=len(place_of)).astype(np.float64)


def candidate_set(
    sequence: schema.Sequence,
    decision: Decision,
    catalogue: Sequence[str],
    place_of: dict[str, int],
    *,
    num_negatives: int | None,
    seed: int,
    weights: NDArray[np.float64] | None = None,
    shuffle: bool = True,
) -> CandidateSet:
    """The target and negatives drawn without replacement, shuffled by the decision's own seed.

    Negatives are items the user has not chosen up to and including the target; for a training decision, not
    among the user's training events, so that no later target shapes a training row. A target that the user
    had before (repeats kept) stays the target. The set depends on the seed, the decision, the user's events
    and the catalogue, on nothing else.

    Args:
        sequence: All events of the decision's user.
        decision: Which choice.
        catalogue: Sorted item ids.
        place_of: The place of each item in ``catalogue``.
        num_negatives: How many negatives; ``None`` for all there are.
        seed: The run's seed.
        weights: (items,) how likely each item of ``catalogue`` is drawn, relative to the others; ``None`` for equally.
        shuffle: As :func:`draw_candidates` is told.

    Raises:
        ValueError: An event's item is not in the catalogue, or too few items are left to draw from.

    Example:
        >>> from pulse_hf.schema import Sequence as S
        >>> user = S("u", ("a", "b", "c"), (), (), ())
        >>> items = ["a", "b", "c", "d", "e"]
        >>> places = {item_id: place for place, item_id in enumerate(items)}
        >>> one = candidate_set(user, Decision("u", 2, "test"), items, places, num_negatives=2, seed=0)
        >>> sorted(one.item_ids), one.item_ids[one.target_index]
        (['c', 'd', 'e'], 'c')
    """
    import numpy as np

    known = sequence.training() if decision.split == "train" else sequence.before(decision.position + 1)
    missing = [item_id for item_id in known.item_ids if item_id not in place_of]
    if missing:
        raise ValueError(
            f"decision {decision.decision_id}: item {missing[0]!r} is not in the catalogue; run prepare again"
        )
    excluded = np.unique([place_of[item_id] for item_id in known.item_ids])
    chances = None
    left = len(catalogue) - len(excluded)
    if weights is not None:
        chances = np.delete(weights, excluded)
        left = int((chances > 0).sum())
    num_negatives = left if num_negatives is None else num_negatives
    if left < num_negatives:
        raise ValueError(
            f"decision {decision.decision_id}: {num_negatives} negatives wanted, but a catalogue of {len(catalogue)} "
            f"items leaves {left} to draw that the user has not chosen; lower num_negatives"
        )
    generator = np.random.default_rng(stable_hash("candidates", seed, decision.decision_id))
    size = len(catalogue) - len(excluded)
    drawn = generator.choice(
        size, num_negatives, replace=False, p=None if chances is None else chances / chances.sum()
    )
    # The n-th item that is not excluded, without listing them: step over the excluded places before it.
    places = drawn + np.searchsorted(excluded - np.arange(len(excluded)), drawn, side="right")
    target = sequence.item_ids[decision.position]
    members = [target, *(catalogue[place] for place in places)]
    order = generator.permutation(len(members)).tolist() if shuffle else list(range(len(members)))
    return CandidateSet(decision.decision_id, decision.split, tuple(members[place] for place in order), order.index(0))


def load_candidates(run: Path) -> list[CandidateSet]:
    """The stored sets of a run, in stored order.

    Args:
        run: The run's folder.

    Raises:
        ArtifactError: The stage has not run.
    """
    artifacts.read_manifest(run / FOLDER)
    rows = artifacts.read_table(run / FOLDER / "candidates.parquet").to_pylist()
    return [
        CandidateSet(row["decision_id"], row["split"], tuple(row["item_ids"]), row["target_index"]) for row in rows
    ]


def candidates_sha256(sets: Iterable[CandidateSet]) -> str:
    """A hash of the sets' content that does not depend on their order.

    >>> one, two = CandidateSet("u#1", "test", ("a", "b"), 0), CandidateSet("v#1", "test", ("a", "b"), 1)
    >>> candidates_sha256([one, two]) == candidates_sha256([two, one]) != candidates_sha256([one])
    True
    """
    lines = sorted("\x1f".join((one.decision_id, one.split, str(one.target_index), *one.item_ids)) for one in sets)
    return artifacts.sha256_of_text(lines)
