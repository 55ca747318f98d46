"""What trains and what does not: encoders cut into a frozen lower and a trained upper half.

What lies below the trained layers never changes, so its output is computed once per text and kept; a step
then runs the upper layers alone. The halves are *views* of the encoder: its own modules, its own mask
handling, the same parameters. Together they are the encoder.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pulse_hf.models.attention import attend_for_training
from pulse_hf.models.device import computes_in_bf16

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pulse_hf.models.thought_space import PulseThoughtSpaceModel

logger = logging.getLogger(__name__)

SIDES = ("history", "rationale")
_LEAST_PART, _MOST_PADDED = 8, 2  # ours: rows of a part, and how many times its shortest text the longest may be


class _GivenStates(nn.Module):
    """Stands where the embeddings were: the states are given."""

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor | None:
        return inputs_embeds


def encoder_layers(tower: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The name of the part that holds the encoder's list of layers, and the list; None if there is no such list."""
    for name in ("encoder", "transformer"):
        layers = getattr(getattr(tower, name, None), "layer", None)
        if isinstance(layers, nn.ModuleList):
            return name, layers
    return None


def split_tower(tower: nn.Module, trained_layers: int) -> tuple[nn.Module, nn.Module] | None:
    """Cut an encoder below its ``trained_layers`` upper layers.

    Args:
        tower: The encoder.
        trained_layers: Layers of the upper half, in [0, number of layers].

    Returns:
        ``lower`` (token ids to states) and ``upper`` (``inputs_embeds=states`` to states), views that share
        the encoder's parameters; None where the architecture is not embeddings followed by a list of layers.

    Raises:
        ValueError: The encoder has fewer layers.
    """
    found = encoder_layers(tower)
    if found is None:
        return None
    name, layers = found
    if trained_layers > len(layers):
        raise ValueError(f"trained_layers is {trained_layers}, but the encoder has {len(layers)} layers.")
    cut = len(layers) - trained_layers
    upper = _view(tower, name, layers[cut:])
    upper._modules["embeddings"] = _GivenStates()
    return _view(tower, name, layers[:cut]), upper


def _view(tower: nn.Module, name: str, layers: nn.ModuleList) -> nn.Module:
    part = copy.copy(getattr(tower, name))
    part._modules = {**part._modules, "layer": layers}
    view = copy.copy(tower)
    view._modules = {**tower._modules, name: part}
    return view


def computes_bf16(precision: str, device: str) -> bool:
    """Whether to compute in bfloat16; "auto" asks the hardware."""
    return computes_in_bf16(device) if precision == "auto" else precision == "bfloat16"


def splits_exactly(model: PulseThoughtSpaceModel, side: str, texts: Sequence[str], trained_layers: int) -> bool:
    """Whether the two halves of a tower give what the whole gives, measured on two texts of unlike length."""
    halves = split_tower(model.tower(side), trained_layers)
    if halves is None:
        return False
    probe = [min(texts, key=len), max(texts, key=len)]
    batch = model.processor.pad(side, model.processor.token_ids(side, probe)).to(model.device)
    lower, upper = halves
    with torch.no_grad():
        try:
            states = lower(**batch).last_hidden_state
            found = upper(inputs_embeds=states, attention_mask=batch["attention_mask"]).last_hidden_state
        except (TypeError, AttributeError, RuntimeError) as error:
            logger.warning("the encoder cannot be cut: %s", error)
            return False
        expected = model.tower(side)(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    return bool(torch.allclose(found[real], expected[real], atol=1e-4))


def length_parts(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in parts of like length, shortest first: a part grows while it is small or little of it is padding.

    >>> [len(part) for part in length_parts([60, 9, 61] * 10)], length_parts([60, 9, 61])
    ([10, 20], [[1, 0, 2]])
    """
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        grows = parts and (len(parts[-1]) < _LEAST_PART or lengths[row] <= _MOST_PADDED * lengths[parts[-1][0]])
        if grows:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


class TextStates:
    """What a tower gets to read in training: frozen lower states of each text, or its token ids.

    Where no layer trains, all that follows is the mean over tokens, so that alone is kept, as a text of one state.

    Args:
        model: The untrained model with its processor.
        side: ``"history"`` or ``"rationale"``.
        trained_layers: Upper layers that train; ``None`` trains the whole tower, nothing is kept.
        bf16: Run the lower layers in bfloat16 and keep their states so.
        max_bytes: Most memory for kept states; beyond it they are computed anew for each batch.
    """

    def __init__(
        self, model: PulseThoughtSpaceModel, side: str, trained_layers: int | None, *, bf16: bool, max_bytes: float
    ) -> None:
        self.processor = model.processor
        self.side = side
        self.device = model.device
        self.bf16 = bf16
        self.max_bytes = max_bytes
        halves = None if trained_layers is None else split_tower(model.tower(side), trained_layers)
        self.lower = halves[0] if halves else None
        self.pooled = trained_layers == 0
        self._width = model.tower(side).config.hidden_size
        self._ids: dict[str, list[int]] = {}
        self._kept: dict[str, Tensor] = {}

    def add(self, texts: Sequence[str]) -> None:
        """Take in texts: tokenise, and compute and keep their lower states if there is room."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        self._ids.update(zip(new, self.processor.token_ids(self.side, new), strict=True))
        kept = len(self._ids) if self.pooled else sum(len(ids) for ids in self._ids.values())
        total = kept * self._width * (2 if self.bf16 and not self.pooled else 4)
        if self.lower is None or not new:
            return
        if total > self.max_bytes:
            logger.warning("%s states would take %.1f GiB: computed anew for each batch", self.side, total / 2**30)
            self._kept.clear()
            return
        new.sort(key=self.length)
        for start in tqdm(range(0, len(new), 64), desc=f"lower layers, {self.side}", leave=False):
            chunk = new[start : start + 64]
            inputs = self.batch(chunk)
            dtype = torch.bfloat16 if self.bf16 and not self.pooled else torch.float32
            for text, states in zip(chunk, inputs["inputs_embeds"], strict=True):
                states = states[: self.length(text)]
                states = states.mean(0, keepdim=True) if self.pooled else states
                self._kept[text] = states.to("cpu", dtype, copy=True)

    def __len__(self) -> int:
        """Different texts that were added."""
        return len(self._ids)

    def length(self, text: str) -> int:
        """Tokens of a text that was added."""
        return len(self._ids[text])

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of the upper half (or of the whole tower) for texts that were added."""
        padded = self.processor.pad(self.side, [self._ids[text] for text in texts]).to(self.device)
        if self.lower is None:
            return dict(padded)
        mask = padded["attention_mask"]
        if texts[0] in self._kept:
            states = nn.utils.rnn.pad_sequence([self._kept[text] for text in texts], batch_first=True)
            mask = torch.ones_like(mask[:, :1]) if self.pooled else mask
            return {"inputs_embeds": states.to(self.device, torch.float32), "attention_mask": mask}
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            states = self.lower(**padded).last_hidden_state
        return {"inputs_embeds": states.float(), "attention_mask": mask}


class TrainableSpace:
    """A model beside the kept states it is trained on.

    Args:
        model: The model; its parameters are frozen and unfrozen here.
        states: One :class:`TextStates` per side.
        trained_layers: As in the states.
    """

    def __init__(
        self, model: PulseThoughtSpaceModel, states: dict[str, TextStates], trained_layers: int | None
    ) -> None:
        self.model = model.eval()  # no dropout (ours): the lower states are exact, and a step is a pure function
        self.states = states
        self.upper: dict[str, nn.Module] = {}
        model.requires_grad_(False)
        for side in SIDES:
            tower = model.tower(side)
            attend_for_training(tower)
            halves = None if trained_layers is None else split_tower(tower, trained_layers)
            self.upper[side] = halves[1] if halves else tower
            trained = tower if halves is None else encoder_layers(self.upper[side])[1]  # type: ignore[index]
            trained.requires_grad_(True)
        if model.config.projection_dim:
            model.history_projection.requires_grad_(True)
            model.rationale_projection.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def embed(self, side: str, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, dim) of added texts, with gradients if enabled.

        Texts of like length go through the tower together: beside a rationale a title would be mostly padding.
        """
        if not texts:  # of the last batch another process has all
            return torch.zeros(0, self._dim(side), device=self.model.device, requires_grad=torch.is_grad_enabled())
        parts = length_parts([self.states[side].length(text) for text in texts])
        if len(parts) == 1:
            return self._embed(side, texts)
        found = torch.cat([self._embed(side, [texts[row] for row in rows]) for rows in parts])
        back = torch.empty(len(texts), dtype=torch.long)
        back[[row for rows in parts for row in rows]] = torch.arange(len(texts))
        return found[back.to(found.device)]

    def _embed(self, side: str, texts: Sequence[str]) -> Tensor:
        inputs = self.states[side].batch(texts)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.states[side].bf16):
            hidden = self.upper[side](**inputs).last_hidden_state
        return self.model.pool(side, hidden.float(), inputs["attention_mask"])

    def _dim(self, side: str) -> int:
        return int(self.model.config.projection_dim or self.model.tower(side).config.hidden_size)

    @torch.no_grad()
    def vectors(self, side: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of any number of texts; missing ones are added."""
        self.states[side].add(texts)
        order = sorted(range(len(texts)), key=lambda row: self.states[side].length(texts[row]))
        out = np.zeros((len(texts), self._dim(side)), np.float32)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            out[rows] = self.embed(side, [texts[row] for row in rows]).cpu().numpy()
        return out
