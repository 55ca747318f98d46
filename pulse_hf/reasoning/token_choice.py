"""Choosing tokens: greedy or by nucleus sampling, with the randomness of every branch its own."""

from __future__ import annotations

from collections.abc import Sequence as Series

import numpy as np
import torch

from pulse_hf.reasoning.generator import Sampling
from pulse_hf.reasoning.rewinding import Text
from pulse_hf.schema import stable_hash

_HEAD = 64


def choose_tokens(
    logits: torch.Tensor, sampling: Sampling, draws: torch.Tensor | None, banned: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every branch, and its log-probability under the model's own distribution.

    Args:
        logits: (..., vocabulary), float32.
        sampling: Temperature 0 takes the likeliest token.
        draws: (...), one number in [0, 1) per branch; unused at temperature 0.
        banned: (..., vocabulary), true for tokens that may not be chosen.

    Returns:
        Tokens and log-probabilities, both (...).

    Example:
        >>> logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
        >>> choose_tokens(logits, Sampling(), None)[0].tolist()
        [0]
        >>> [choose_tokens(logits, Sampling(temperature=1.0), torch.tensor([u]))[0].item() for u in (0.4, 0.6, 0.9)]
        [0, 1, 2]
    """
    open_to = logits if banned is None else logits.masked_fill(banned, -torch.inf)
    if sampling.temperature == 0 or draws is None:
        chosen = open_to.argmax(-1)
    elif sampling.top_p < 1:
        chosen = _draw_nucleus((open_to / sampling.temperature).softmax(-1), sampling.top_p, draws)
    else:
        chosen = _draw((open_to / sampling.temperature).softmax(-1).cumsum(-1), draws)
    picked = logits.gather(-1, chosen[..., None])[..., 0]
    return chosen, picked - logits.logsumexp(-1)


def _draw(cumulative: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass passes a draw's share of the whole."""
    aims = draws[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, aims, right=True)[..., 0].clamp_max(cumulative.shape[-1] - 1)


def _draw_nucleus(probabilities: torch.Tensor, top_p: float, draws: torch.Tensor) -> torch.Tensor:
    """Draw from the smallest set of tokens whose mass reaches ``top_p``.

    Only a head is sorted; rows whose head holds less mass than that are sorted in full.
    """
    vocabulary = probabilities.shape[-1]
    mass, tokens = probabilities.topk(min(_HEAD, vocabulary))
    chosen = _draw_sorted(mass, tokens, top_p, draws)
    flat = mass.sum(-1) < top_p
    if vocabulary > _HEAD and bool(flat.any()):
        mass, tokens = probabilities[flat].topk(vocabulary)
        chosen[flat] = _draw_sorted(mass, tokens, top_p, draws[flat])
    return chosen


def _draw_sorted(mass: torch.Tensor, tokens: torch.Tensor, top_p: float, draws: torch.Tensor) -> torch.Tensor:
    kept = mass.cumsum(-1) - mass < top_p
    index = torch.minimum(_draw((mass * kept).cumsum(-1), draws), kept.sum(-1) - 1)
    return tokens.gather(-1, index[..., None])[..., 0]


class Written:
    """What the branches of a batch have written so far; tensors are (rows, width, ...).

    Args:
        keys: The prompt key of every row; with the seed and a sample's number it seeds that sample.
        width: Branches of a row.
        sampling: How tokens are drawn.
        seed: The call's seed.
        stops: Tokens that end a text.
        banned: Per row the tokens its branches may not begin with.
    """

    def __init__(
        self,
        keys: Series[str],
        width: int,
        sampling: Sampling,
        seed: int,
        stops: torch.Tensor,
        banned: Series[Series[int]] | None = None,
    ) -> None:
        shape, device = (len(keys), width), stops.device
        self.sampling = sampling
        self.stops, self.banned = stops, banned
        self.tokens = torch.zeros(*shape, sampling.max_new_tokens, dtype=torch.long, device=device)
        self.length = torch.zeros(shape, dtype=torch.long, device=device)
        self.log_probabilities = torch.zeros(*shape, sampling.max_new_tokens, device=device)
        self.stopped = torch.zeros(shape, dtype=torch.bool, device=device)
        self.draws = None
        if sampling.temperature > 0:
            seeds = [[stable_hash(seed, key, sample) for sample in range(width)] for key in keys]
            draws = [
                [np.random.default_rng(number).random(sampling.max_new_tokens) for number in row] for row in seeds
            ]
            self.draws = torch.from_numpy(np.array(draws)).float().to(device)

    def write(self, rows: torch.Tensor, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose and note the next token of every branch of the given rows.

        Args:
            rows: Row numbers, (n,).
            logits: (n, width, vocabulary), any float type.
            step: How many tokens each open branch has.

        Returns:
            The tokens, (n, width), and which of the rows still have an open branch, (n,).
        """
        draws = None if self.draws is None else self.draws[rows, :, step]
        banned = self._banned(logits) if step == 0 and self.banned else None
        chosen, log_probability = choose_tokens(logits.float(), self.sampling, draws, banned)
        going = ~self.stopped[rows]
        self.tokens[rows, :, step] = chosen
        self.length[rows] += going
        self.log_probabilities[rows, :, step] = log_probability
        self.stopped[rows] |= torch.isin(chosen, self.stops)
        return chosen, ~self.stopped[rows].all(1)

    def _banned(self, logits: torch.Tensor) -> torch.Tensor:
        """True where a row may not begin; all rows are there at the first step."""
        banned = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for row, tokens in enumerate(self.banned or ()):
            banned[row, :, list(tokens)] = True
        return banned

    def texts(self) -> list[list[Text]]:
        """Per row the text of every branch."""
        columns = (
            self.tokens.tolist(),
            self.log_probabilities.tolist(),
            self.length.tolist(),
            self.stopped.tolist(),
        )
        return [
            [Text(tokens[:length], logs[:length], stopped) for tokens, logs, length, stopped in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]
