"""How much the text and the votes of shared reasons count: constants fitted on validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel

_NOTHING = 1e-3  # of the largest weight, both for columns of equal spread

__all__ = ["fit_vote_weights", "weigh_votes"]


def fit_vote_weights(columns: torch.Tensor, labels: torch.Tensor, l2: float = 1e-2) -> list[float]:
    """Weights that make the chosen candidates likeliest, none below 0.

    Args:
        columns: (decisions, candidates, columns), what is to be added up; ``-inf`` in every column marks an absent
            candidate.
        labels: (decisions,), the chosen candidate's place.
        l2: Pull to 0 of the weights of standardised columns.

    Returns:
        One weight per column.

    Example:
        >>> columns = torch.tensor([[[1.0, 0.0], [0.0, 0.3]], [[0.0, 0.1], [1.0, 0.0]], [[0.0, 0.2], [1.0, 0.4]]])
        >>> weights = fit_vote_weights(columns, torch.tensor([0, 1, 1]))
        >>> weights[0] > 1, weights[1] >= 0
        (True, True)
    """
    absent = columns.isinf().any(-1)
    columns = columns.masked_fill(absent[..., None], 0).double()
    spread = columns[~absent].std(0).clamp_min(1e-6)
    # The square keeps a weight from turning a vote against the items it is cast for.
    roots = torch.full(spread.shape, 0.7, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([roots], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (columns / spread * roots.square()).sum(-1).masked_fill(absent, -torch.inf)
        loss = nn.functional.cross_entropy(logits, labels) + l2 * roots.square().square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    shares = roots.detach().square()
    shares[shares < _NOTHING * shares.max()] = 0
    return [float(weight) for weight in shares / spread]


@torch.no_grad()
def weigh_votes(scorer: PulseScorerModel, weights: Sequence[float]) -> None:
    """Let a text scorer take votes: its own logit times the first weight, each vote times one of the others."""
    text, *votes = weights
    scorer.score.weight.mul_(text)
    scorer.likelihood_score.weight.mul_(text)
    scorer.config.num_candidate_features = len(votes)
    scorer.feature_score = nn.Linear(len(votes), 1, bias=False).to(scorer.score.weight.device)
    scorer.feature_score.weight.copy_(torch.tensor([votes]))
