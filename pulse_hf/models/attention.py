"""Attention that trains fast on a CPU in bfloat16.

The way back through PyTorch's fused attention takes longer in bfloat16 than in float32 on a CPU (torch 2.13, AMX): 17
times for texts of 16 tokens, 4 to 5 times for 60 to 100, 1.2 times for 384. With titles that was half of a step. So
keys, queries and values that need gradients are attended to in float32 there; everything else is as ``"sdpa"``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["TRAINED_ATTENTION", "attend_for_training"]

TRAINED_ATTENTION = "pulse_trained"


def attend_for_training(model: PreTrainedModel) -> None:
    """Let a model that is about to train attend as this file says, if it would use ``"sdpa"``.

    Args:
        model: A model of transformers, wherever it will train; what it computes stays the same up to rounding.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(TRAINED_ATTENTION)


def trained_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface; shapes and arguments are those of ``sdpa``."""
    parts = (query, key, value)
    trains = torch.is_grad_enabled() and any(one.requires_grad for one in parts)
    if not trains or query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        attended, _ = sdpa_attention_forward(module, *(one.float() for one in parts), attention_mask, **kwargs)
    return attended.to(query.dtype), None


AttentionInterface.register(TRAINED_ATTENTION, trained_attention)
AttentionMaskInterface.register(TRAINED_ATTENTION, sdpa_mask)
