"""The plain loop behind the ``thought-space`` stage: InfoNCE, two learning rates, early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pulse_hf.artifacts import process, whole_batch
from pulse_hf.metrics import rank_metrics
from pulse_hf.training.finite import require_finite
from pulse_hf.training.losses import has_negative, info_nce_loss
from pulse_hf.training.resume import fit_state, restore_fit
from pulse_hf.training.thought_pairs import pair_texts
from pulse_hf.training.thought_space_towers import SIDES, TrainableSpace
from pulse_hf.training.together import gathered, own_rows, sum_gradients

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.artifacts import Checkpoints
    from pulse_hf.training.thought_pairs import Pair
    from pulse_hf.training.thought_space import ThoughtSpaceSettings

_LENGTH_WINDOW = 16  # batches that are sorted by length together: little padding, still mixed by chance


def length_batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Every row once, in batches of rows of like length, in random order; no batch of one row.

    >>> [sorted(b.tolist()) for b in length_batches([5, 1, 5, 1], 2, np.random.default_rng(0))]
    [[0, 2], [1, 3]]
    """
    order = rng.permutation(len(lengths))
    window = batch_size * _LENGTH_WINDOW
    values = np.asarray(lengths)
    chunks = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([chunk[np.argsort(values[chunk], kind="stable")] for chunk in chunks])
    batches = np.array_split(order, num_batches(len(order), batch_size))
    yield from (batches[place] for place in rng.permutation(len(batches)))


def num_batches(rows: int, batch_size: int) -> int:
    """Batches per epoch: at most ``batch_size`` rows each, or one more where a row would be alone."""
    return max(1, min(math.ceil(rows / batch_size), rows // 2))


def groups_of(pairs: Sequence[Pair]) -> Tensor:
    """(n, 3) ids of user, target item and rationale text: pairs that share one are no negatives of each other."""
    columns = []
    for key in ("user_id", "target_id", "rationale"):
        number: dict[str, int] = {}
        columns.append([number.setdefault(getattr(pair, key), len(number)) for pair in pairs])
    return torch.tensor(columns).T


def retrieval_quality(
    history: NDArray[np.float32], rationale: NDArray[np.float32], groups: Tensor
) -> dict[str, float]:
    """How often a history finds its own rationale among those of others (R@1, MRR; ties by expected value).

    Args:
        history: (n, dim) unit vectors.
        rationale: (n, dim) unit vectors, row i belongs to history i.
        groups: (n, kinds) ids; rationales that share one with the history's own are no candidates.

    Returns:
        ``r@1`` and ``mrr`` in [0, 1], ``pairs`` and the mean number of ``candidates``.
    """
    cosines = history @ rationale.T
    ids = groups.numpy()
    rows, places = [], []
    for row in range(len(cosines)):
        candidate = ~(ids == ids[row]).any(1)
        candidate[row] = True
        rows.append(cosines[row, candidate])
        places.append(int(candidate[:row].sum()))
    found = rank_metrics(rows, places, system="thought space")
    candidates = float(np.mean([len(row) for row in rows]))
    return {
        "r@1": float(found["hr@1"].mean()),
        "mrr": float(found["mrr"].mean()),
        "pairs": len(rows),
        "candidates": candidates,
    }


@dataclass
class FitReport:
    """What happened in one fit.

    Args:
        losses: Training loss of every step.
        epochs: Validation quality after each epoch; the first is before training.
        best_epoch: The epoch whose weights were kept; 0 is the pretrained model.
        skipped_batches: Batches that made no step, since none of their pairs had a negative among the others.
    """

    losses: list[float]
    epochs: list[dict[str, float]]
    best_epoch: int
    skipped_batches: int = 0


def fit(
    space: TrainableSpace,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    settings: ThoughtSpaceSettings,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
) -> FitReport:
    """Train the space by Eq. 1; the weights of the epoch with the best validation MRR are what remains.

    Args:
        space: What trains.
        pairs: Pairs to fit.
        validation: Pairs of other users; their histories are target-free.
        settings: The stage's settings.
        seed: Decides batches and drawn negatives.
        checkpoints: Where the fit keeps its state, and goes on from if it was killed; the result is the same.

    Raises:
        ValueError: Fewer than two pairs on a side, or no batch of an epoch has a negative.
        FloatingPointError: A loss, gradient or weight is not finite; the step is named.
    """
    if min(len(pairs), len(validation)) < 2:
        raise ValueError(
            f"Found {len(pairs)} pairs to fit and {len(validation)} to validate, expected at least 2 each: add users."
        )
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for side in SIDES:
        space.states[side].add(pair_texts(pairs, side))
    optimizer = _optimizer(space, settings)
    schedule = _schedule(
        optimizer, settings.epochs * num_batches(len(pairs), settings.batch_size), settings.warmup_ratio
    )
    groups = groups_of(pairs)
    state = _State(space, optimizer, schedule, rng, generator)
    report, best = state.resumed(checkpoints) or (
        FitReport([], [validation_quality(space, validation)], 0),
        state.weights(),
    )
    lengths = [space.states["history"].length(pair.training_history) for pair in pairs]
    for epoch in range(len(report.epochs), settings.epochs + 1):
        if epoch - 1 - report.best_epoch >= settings.patience:
            break
        state.drawn_from = rng.bit_generator.state
        drawn = list(length_batches(lengths, settings.batch_size, rng))
        batches = _with_negatives(drawn, groups, epoch)
        for rows in tqdm(batches[state.done :], desc=f"epoch {epoch}", leave=False):
            with whole_batch() as asked:
                place = f"thought space, epoch {epoch}, step {len(report.losses) + 1}"
                report.losses.append(state.step([pairs[row] for row in rows], groups[rows], settings, place))
                state.done += 1
                if checkpoints and process() == 0 and (asked() or checkpoints.due()):
                    state.save(checkpoints, report, best)
        require_finite(space.trained().items(), "weight", f"thought space, epoch {epoch}")
        report.epochs.append(validation_quality(space, validation))
        report.skipped_batches += len(drawn) - len(batches)
        state.drawn_from, state.done = rng.bit_generator.state, 0
        if report.epochs[-1]["mrr"] > report.epochs[report.best_epoch]["mrr"]:
            report.best_epoch = epoch
            best = state.weights()
        if checkpoints and process() == 0 and (checkpoints.due() or epoch == settings.epochs):
            state.save(checkpoints, report, best)
    with torch.no_grad():
        for name, value in space.trained().items():
            value.copy_(best[name])
    return report


def _with_negatives(batches: list[NDArray[np.int64]], groups: Tensor, epoch: int) -> list[NDArray[np.int64]]:
    """The batches that teach anything: a pair beside its own twin has no negative."""
    found = [rows for rows in batches if has_negative(groups[rows])]
    if not found:
        raise ValueError(
            f"none of the {len(batches)} batches of epoch {epoch} has two pairs that are negatives of each other (of "
            "other users, targets and rationales). Raise thought_space.batch_size, or add users."
        )
    return found


@dataclass
class _State:
    """All that changes while a space is trained.

    Args:
        space: What trains.
        optimizer: Of its weights.
        schedule: Of the optimizer's rates.
        rng: Draws the batches of an epoch, all of them before its first step.
        generator: Draws negatives.
        drawn_from: State of ``rng`` that the epoch under way was drawn from.
        done: Steps of that epoch that are done.
    """

    space: TrainableSpace
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    rng: np.random.Generator
    generator: torch.Generator
    drawn_from: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0

    def step(self, pairs: Sequence[Pair], groups: Tensor, settings: ThoughtSpaceSettings, place: str) -> float:
        """One step on a batch; its loss, rounded as it is reported."""
        history, rationale = (
            gathered(self.space.embed(side, pair_texts(own_rows(pairs), side)), len(pairs)) for side in SIDES
        )
        loss = info_nce_loss(
            history,
            rationale,
            settings.temperature,
            num_negatives=settings.num_negatives,
            generator=self.generator,
            same=groups,
            symmetric=settings.symmetric,
        )
        require_finite([("of the batch", loss)], "loss", place)
        self.optimizer.zero_grad()
        loss.backward()
        sum_gradients(self.space.trained().values())
        require_finite(((name, one.grad) for name, one in self.space.trained().items()), "gradient", place)
        nn.utils.clip_grad_norm_(self.space.trained().values(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return round(loss.item(), 6)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights in training."""
        return {name: value.detach().clone() for name, value in self.space.trained().items()}

    def save(self, checkpoints: Checkpoints, report: FitReport, best: dict[str, Tensor]) -> None:
        """Keep the state after a step or an epoch, if its weights are finite."""
        require_finite(self.space.trained().items(), "weight", f"thought space, step {len(report.losses)}")
        tensors = fit_state(self.weights(), best, self.optimizer, self.generator)
        beside = {
            "report": asdict(report),
            "batches": self.drawn_from,
            "done": self.done,
            "steps": self.schedule.last_epoch,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }
        checkpoints.save(len(report.losses) + len(report.epochs), tensors, beside)  # both grow, so the later is newer

    @torch.no_grad()
    def resumed(self, checkpoints: Checkpoints | None) -> tuple[FitReport, dict[str, Tensor]] | None:
        """The report so far and the best weights, if a killed fit can go on."""
        found = checkpoints.newest() if checkpoints else None
        if found is None:
            return None
        _, tensors, beside = found
        weights, best = restore_fit(tensors, self.optimizer, beside["rates"], self.generator)
        for name, value in self.space.trained().items():
            value.copy_(weights[name])
        self.rng.bit_generator.state, self.done = beside["batches"], beside["done"]
        self.schedule.last_epoch = beside["steps"]
        return FitReport(**beside["report"]), best


def validation_quality(space: TrainableSpace, pairs: Sequence[Pair], *, masked: bool = False) -> dict[str, float]:
    """Retrieval quality on target-free histories, titles as they are or their words left out on both sides."""
    history = space.vectors("history", [pair.masked_history if masked else pair.history for pair in pairs])
    rationale = space.vectors("rationale", [pair.masked_rationale if masked else pair.rationale for pair in pairs])
    return retrieval_quality(history, rationale, groups_of(pairs))


def _optimizer(space: TrainableSpace, settings: ThoughtSpaceSettings) -> torch.optim.AdamW:
    groups = []
    for projection, rate in ((False, settings.encoder_learning_rate), (True, settings.projection_learning_rate)):
        mine = {name: value for name, value in space.trained().items() if ("_projection." in name) == projection}
        # Vectors (biases, LayerNorm scales) are not decayed, as usual for encoders.
        for decay, members in (
            (settings.weight_decay, [value for value in mine.values() if value.dim() > 1]),
            (0.0, [value for value in mine.values() if value.dim() <= 1]),
        ):
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def _schedule(optimizer: torch.optim.Optimizer, steps: int, warmup_ratio: float) -> torch.optim.lr_scheduler.LambdaLR:
    warmup = max(1, round(steps * warmup_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
