"""A text encoder for the baselines that train one: its upper layers train, on the Thought Space's budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pulse_hf.training.thought_space import ThoughtSpaceSettings, start_model
from pulse_hf.training.thought_space_towers import TextStates, TrainableSpace, computes_bf16, splits_exactly

if TYPE_CHECKING:
    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

__all__ = ["TextTower"]

logger = logging.getLogger(__name__)

_SIDE = "history"  # both sides of a shared tower are one encoder; this one reads the longer texts
_CHUNK = 32  # texts of like length that are padded together


class TextTower:
    """A pretrained encoder whose upper layers train, over texts that are known beforehand.

    What lies below the trained layers is computed once per text (:class:`TextStates`). At least one layer trains,
    also in a run whose Thought Space trains a projection alone.

    Args:
        space: Encoder, trained layers, longest text, precision and memory.
        texts: Every text that will be asked for.
    """

    def __init__(self, space: ThoughtSpaceSettings, texts: Sequence[str]) -> None:
        layers = None if space.trained_layers is None else max(1, space.trained_layers)
        alone = replace(space, shared_towers=True, projection_dim=0, trained_layers=layers)
        self.model: PulseThoughtSpaceModel = start_model(alone)
        if layers is not None and not splits_exactly(self.model, _SIDE, texts, layers):
            logger.warning("%s has no plain list of layers to cut at: all of its layers train", space.encoder)
            layers = None
        bf16 = computes_bf16(space.precision, self.model.device.type)
        self.states = TextStates(self.model, _SIDE, layers, bf16=bf16, max_bytes=space.max_cache_gib * 2**30)
        self.space = TrainableSpace(self.model, {_SIDE: self.states}, layers)
        self.states.add(texts)
        self.dim = self.model.tower(_SIDE).config.hidden_size

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return self.space.trained()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [self.states.length(text) for text in texts]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, dim) of texts, in the order given, with gradients if enabled."""
        order = sorted(range(len(texts)), key=lambda row: self.states.length(texts[row]))
        chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
        # One context for all chunks: autocast keeps the rounded weights until it is left.
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.states.bf16):
            vectors = torch.cat([self.space.embed(_SIDE, [texts[row] for row in chunk]) for chunk in chunks])
        return vectors[torch.tensor(order, device=vectors.device).argsort()]
