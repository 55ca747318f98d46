"""Fitting one SASRec: batches of like length, early stopping on the validation targets."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from pulse_hf.artifacts import num_processes, process
from pulse_hf.metrics import NDCG_CUTOFF, rank_metrics
from pulse_hf.models.device import default_device
from pulse_hf.models.sasrec import PulseSASRecConfig, PulseSASRecModel
from pulse_hf.models.sasrec.modeling_sasrec import left_padded
from pulse_hf.schema import stable_hash
from pulse_hf.training.finite import require_finite
from pulse_hf.training.resume import fit_state, restore_fit
from pulse_hf.training.together import own_rows, sum_gradients, summed

if TYPE_CHECKING:
    from torch import Tensor

    from pulse_hf.artifacts import Checkpoints
    from pulse_hf.training.sequential import SequentialSettings

Auxiliary = Callable[[PulseSASRecModel, Sequence[Sequence[int]], torch.Generator], torch.Tensor]
"""A further loss of a batch: the model in training mode, the batch's training rows (item indices, oldest first, the
last one a target) and the fit's generator, to a scalar."""

Build = Callable[[PulseSASRecConfig], PulseSASRecModel]
"""Makes the model that is trained; a baseline may train a subclass."""

__all__ = [
    "Auxiliary",
    "Build",
    "FitReport",
    "centred",
    "fit_sasrec",
    "other_items",
    "sasrec_config",
    "validation_ndcg",
]

_logger = logging.getLogger(__name__)
_BATCHES_PER_POOL = 8
_STEPS_PER_EPOCH = 20


@dataclass(frozen=True)
class FitReport:
    """What a fit did; goes into the manifest.

    Args:
        users: Users with at least one training target.
        skipped_users: Users with fewer than two training events: nothing to learn from.
        cut_users: Users whose oldest events were cut to keep the last ``max_length`` + 1.
        targets: Training targets per epoch.
        epochs: Epochs run.
        best_epoch: The epoch whose weights were kept, from 1; the last one if nothing validates.
        validation_ndcg: NDCG@10 over the full catalogue after each epoch.
    """

    users: int
    skipped_users: int
    cut_users: int
    targets: int
    epochs: int
    best_epoch: int
    validation_ndcg: tuple[float, ...]


def fit_sasrec(
    histories: Sequence[Sequence[int]],
    validation: Sequence[tuple[Sequence[int], int]],
    num_items: int,
    settings: SequentialSettings,
    *,
    seed: int,
    text_features: Tensor | None = None,
    name: str = "sasrec",
    checkpoints: Checkpoints | None = None,
    start: PulseSASRecModel | None = None,
    auxiliary: Auxiliary | None = None,
    build: Build = PulseSASRecModel,
    rates: Mapping[str, float] | None = None,
) -> tuple[PulseSASRecModel, FitReport]:
    """Fit a SASRec on training histories; the validation targets choose the epoch and nothing else.

    Two calls with equal arguments on one machine and thread count give equal weights, whatever was drawn
    from torch's global generator before; that generator is left as it was found.

    Args:
        histories: Training events of each user as item indices, oldest first.
        validation: Pairs of a history and the item index that followed; empty for no early stopping.
        num_items: Size of the catalogue.
        settings: Size, objective and schedule.
        seed: Seed of weights, batches, dropout and sampled negatives.
        text_features: (num_items, text_dim) frozen text vectors, or ``None`` for ids alone.
        name: What the progress bar says.
        checkpoints: Where the fit keeps its state, and goes on from if it was killed; the result is the same.
        start: Weights to begin with, of a model with the same sizes; ``None`` for random ones.
        auxiliary: A further loss that is added to each batch's, of some baselines.
        build: Makes the model from its configuration.
        rates: Learning rates of parts that have one of their own, by the beginning of their parameters' names.

    Returns:
        The model in evaluation mode with the weights of the best epoch, and what happened.

    Raises:
        ValueError: No user has two training events.
        FloatingPointError: The loss became infinite or NaN.
    """
    rows = [list(history[-settings.max_length - 1 :]) for history in histories if len(history) >= 2]
    if not rows:
        raise ValueError(
            f"{name}: none of {len(histories)} users has two training events; there is no next item to learn"
        )
    text_dim = 0 if text_features is None else text_features.shape[1]
    device = torch.device(default_device())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build(sasrec_config(num_items, settings, text_dim)).to(device)
        excluded = None if text_features is None else _begin_with_text(model, text_features, rows)
        if start is not None:
            model.load_state_dict(start.state_dict())
        generator = torch.Generator().manual_seed(seed)
        fit = _Fit(model, rows, settings, generator, excluded, checkpoints, auxiliary, rates or {})
        history = fit.run(validation, name)
    best = int(np.argmax(history)) + 1 if validation else settings.epochs
    report = FitReport(
        users=len(rows),
        skipped_users=len(histories) - len(rows),
        cut_users=sum(len(history) > settings.max_length + 1 for history in histories),
        targets=sum(len(row) - 1 for row in rows),
        epochs=len(history) if validation else settings.epochs,
        best_epoch=best,
        validation_ndcg=tuple(round(value, 6) for value in history),
    )
    _logger.info("%s: epoch %d of %d kept, validation NDCG@10 %s", name, best, report.epochs, report.validation_ndcg)
    return model.eval(), report


def sasrec_config(num_items: int, settings: SequentialSettings, text_dim: int = 0) -> PulseSASRecConfig:
    """Size and objective as the settings say; ``text_dim`` is the width of text vectors, 0 for ids alone."""
    return PulseSASRecConfig(
        num_items=num_items,
        dim=settings.dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        dropout=settings.dropout,
        max_events=settings.max_length,
        text_dim=text_dim,
        loss=settings.loss,
    )


def centred(vectors: Tensor) -> Tensor:
    """Text vectors of a catalogue as the model reads them: about their mean, of unit length.

    >>> centred(torch.tensor([[1.0, 3.0], [1.0, 1.0]])).tolist()
    [[0.0, 1.0], [0.0, -1.0]]
    """
    spread = vectors - vectors.mean(dim=0)  # one domain's texts share a direction that tells nothing
    return torch.nn.functional.normalize(spread, dim=1)


def _begin_with_text(model: PulseSASRecModel, vectors: Tensor, rows: list[list[int]]) -> Tensor:
    """Make every item its text alone, and say which items the softmax leaves out: those without a training event.

    Such an item can never be a target, so as a mere negative it would only be learnt to be wrong *because* it is
    new. Id embeddings start at zero: what a seen item is beyond its text is learnt, an unseen one stays its text.
    """
    model.set_text_features(centred(vectors))
    torch.nn.init.zeros_(model.item_embedding.weight)
    excluded = torch.ones(model.config.num_items, dtype=torch.bool, device=model.device)
    excluded[torch.tensor(sorted({index - 1 for row in rows for index in row}), device=model.device)] = False
    return excluded


@dataclass
class _Fit:
    """One fit under way.

    Args:
        model: Trained in place.
        rows: Training events of the users that have a target.
        settings: Of the stage.
        generator: Draws batches and negatives.
        excluded: (num_items,) items left out of the softmax, or ``None``.
        checkpoints: Where the state is kept, if anywhere.
        auxiliary: A further loss of each batch, or ``None``.
        rates: Learning rates of parts of the model, by the beginning of their parameters' names.
    """

    model: PulseSASRecModel
    rows: list[list[int]]
    settings: SequentialSettings
    generator: torch.Generator
    excluded: Tensor | None
    checkpoints: Checkpoints | None = None
    auxiliary: Auxiliary | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def run(self, validation: Sequence[tuple[Sequence[int], int]], name: str) -> list[float]:
        """Train until nothing gets better; the model ends with the weights of the best epoch.

        Returns:
            Validation NDCG@10 after each epoch; empty if nothing validates.
        """
        optimizer = torch.optim.AdamW(
            self._groups(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        begin, history, best_weights = self._resumed(optimizer)
        progress = tqdm(
            range(begin, self.settings.epochs), desc=name, unit="epoch", initial=begin, total=self.settings.epochs
        )
        for epoch in progress:
            loss = self._epoch(optimizer, epoch)
            require_finite(self.model.named_parameters(), "weight", f"{name}, epoch {epoch + 1}")
            best = epoch
            if validation:
                history.append(validation_ndcg(self.model, validation))
                progress.set_postfix(loss=f"{loss:.3f}", ndcg=f"{history[-1]:.4f}")
                best = int(np.argmax(history))
                if best == epoch:
                    best_weights = copy.deepcopy(self.model.state_dict())
            last = epoch - best >= self.settings.patience or epoch + 1 == self.settings.epochs
            if self.checkpoints and (last or self.checkpoints.due()):
                self._save(optimizer, self.settings.epochs if last else epoch + 1, history, best_weights)
            if last:
                break
        progress.close()
        if best_weights:
            self.model.load_state_dict(best_weights)
        return history

    def _groups(self) -> list[dict[str, Any]]:
        parts: dict[str, list[Tensor]] = {part: [] for part in ("", *self.rates)}
        for name, parameter in self.model.named_parameters():
            parts[next((part for part in self.rates if name.startswith(part)), "")].append(parameter)
        own = {part: {"lr": rate} for part, rate in self.rates.items()}
        return [{"params": members, **own.get(part, {})} for part, members in parts.items()]

    def _save(
        self, optimizer: torch.optim.Optimizer, epochs: int, history: list[float], best: dict[str, Tensor]
    ) -> None:
        if self.checkpoints is None or process() > 0:
            return
        tensors = fit_state(self.model.state_dict(), best, optimizer, self.generator)
        self.checkpoints.save(epochs, tensors, {"history": history})

    def _resumed(self, optimizer: torch.optim.Optimizer) -> tuple[int, list[float], dict[str, Tensor]]:
        """Epochs that are done, their validation NDCG@10 and the best weights; all of it empty for a new fit."""
        found = self.checkpoints.newest() if self.checkpoints else None
        if found is None:
            return 0, [], {}
        epochs, tensors, state = found
        rates = [group["lr"] for group in optimizer.param_groups]
        weights, best = restore_fit(tensors, optimizer, rates, self.generator)
        self.model.load_state_dict(weights)
        _logger.info("going on after epoch %d", epochs)
        return epochs, list(state["history"]), best

    def _epoch(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        model, settings = self.model.train(), self.settings
        if process() > 0:  # a checkpoint holds the first process's random state; dropout of others begins anew
            torch.manual_seed(stable_hash("dropout", self.generator.initial_seed(), epoch, process()))
        # A small shop still takes some steps per epoch: patience counts epochs.
        targets = _targets(self.rows)
        size = min(settings.batch_size, max(1, targets // _STEPS_PER_EPOCH))
        losses = []
        for step, batch in enumerate(_batches(self.rows, size, self.generator)):
            place = f"epoch {epoch + 1}, step {step + 1}, learning rate {settings.learning_rate}"
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(batch) * (_targets(own_rows(batch)) / _targets(batch))
            loss.backward()
            whole = summed(loss)
            require_finite([("of the batch", whole)], "loss", place)
            sum_gradients(model.parameters())
            require_finite(((name, one.grad) for name, one in model.named_parameters()), "gradient", place)
            optimizer.step()
            losses.append(float(whole))
        return float(np.mean(losses))

    def _loss(self, batch: list[list[int]]) -> Tensor:
        """Mean loss of the targets of this process's rows; 0 without any, so that it still takes part."""
        model, settings, rows = self.model, self.settings, own_rows(batch)
        negatives = None
        if settings.loss != "ce":
            # Drawn for the whole batch by every process: their generators stay alike.
            everybody = left_padded([row[1:] for row in batch], settings.max_length)
            targets = everybody[everybody != 0]
            drawn = other_items(targets, model.config.num_items, settings.num_negatives, self.generator)
            mine = everybody.nonzero()[:, 0] % num_processes() == process()
            negatives = drawn[mine].to(model.device)
        if not rows:
            return next(model.parameters()).sum() * 0
        item_indices = left_padded([row[:-1] for row in rows], settings.max_length)
        labels = left_padded([row[1:] for row in rows], settings.max_length)
        loss: Tensor = model(item_indices.to(model.device), labels.to(model.device), negatives, self.excluded).loss
        return loss if self.auxiliary is None else loss + self.auxiliary(model, rows, self.generator)


def _targets(rows: Sequence[list[int]]) -> int:
    return sum(len(row) - 1 for row in rows)


def _batches(rows: list[list[int]], num_targets: int, generator: torch.Generator) -> Iterator[list[list[int]]]:
    """Batches of about ``num_targets`` targets whose rows have like lengths, in a new order every epoch.

    Rows are shuffled, sorted by length within pools of several batches, cut into batches of equal numbers of
    targets (so each step weighs the same), and the batches of a pool shuffled again.
    """
    order = torch.randperm(len(rows), generator=generator).tolist()
    pool: list[list[int]] = []
    targets = 0
    for place in order:
        pool.append(rows[place])
        targets += len(rows[place]) - 1
        if targets >= num_targets * _BATCHES_PER_POOL:
            yield from _cut(pool, num_targets, generator)
            pool, targets = [], 0
    yield from _cut(pool, num_targets, generator)


def _cut(pool: list[list[int]], num_targets: int, generator: torch.Generator) -> Iterator[list[list[int]]]:
    batches: list[list[list[int]]] = []
    room = 0
    for row in sorted(pool, key=len):
        if room <= 0:
            batches.append([])
            room = num_targets
        batches[-1].append(row)
        room -= len(row) - 1
    for place in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[place]


def other_items(targets: Tensor, num_items: int, number: int, generator: torch.Generator) -> Tensor:
    """Uniform items other than each target.

    Args:
        targets: (num_targets,) item indices, from 1.
        num_items: Size of the catalogue.
        number: Items per target.
        generator: Draws them.

    Returns:
        (num_targets, number) item indices.

    Raises:
        ValueError: The catalogue has no other item.
    """
    if num_items < 2:
        raise ValueError(f"negatives are sampled, but the catalogue has {num_items} item")
    drawn = torch.randint(1, num_items, (len(targets), number), generator=generator)
    # Drawing from one item fewer and stepping over the target is uniform over the others, without retries.
    return drawn + (drawn >= targets[:, None])


@torch.no_grad()
def validation_ndcg(
    model: PulseSASRecModel, validation: Sequence[tuple[Sequence[int], int]], batch_size: int = 1024
) -> float:
    """Mean NDCG@10 of the targets among the full catalogue, ties at their expected value.

    Args:
        model: The model to look at; its mode is left as it is.
        validation: Pairs of a history and the item index that followed.
        batch_size: Users scored at once.
    """
    values = []
    for start in range(0, len(validation), batch_size):
        part = validation[start : start + batch_size]
        scores = model.scores([history for history, _ in part])[:, 1:].cpu().numpy()
        targets = [target - 1 for _, target in part]
        values.append(rank_metrics(list(scores), targets, system="sasrec")[f"ndcg@{NDCG_CUTOFF}"])
    return float(np.concatenate(values).mean())
