"""Candidates as branches behind one prompt: how they are laid out, and the masks that keep them apart.

They are kept apart by a float *additive* four-dimensional mask: a boolean one is silently
misread by eager attention. A sliding window is ignored by transformers once a four-dimensional mask is
given, so it is applied here, by position distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

# Families with full and sliding layers side by side whose forward takes one mask per layer type; each is
# shown equal to one-by-one scoring in the tests.
FAMILIES_WITH_MASK_PER_LAYER_TYPE = ("gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3")


def packed_branches(
    prompt_ids: Sequence[int], candidate_ids: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[int]]:
    """Tokens, segments and positions of a prompt and its candidates in one sequence.

    >>> packed_branches([7, 8], [[1, 2], [3]])
    ([7, 8, 1, 2, 3], [0, 0, 1, 1, 2], [0, 1, 2, 3, 2])
    """
    size = len(prompt_ids)
    tokens = [*prompt_ids, *(token for ids in candidate_ids for token in ids)]
    segments = [0] * size + [place for place, ids in enumerate(candidate_ids, start=1) for _ in ids]
    positions = [*range(size), *(size + offset for ids in candidate_ids for offset in range(len(ids)))]
    return tokens, segments, positions


def branch_mask(
    segment_ids: torch.Tensor,
    position_ids: torch.Tensor,
    num_queries: int,
    dtype: torch.dtype,
    window: int | None = None,
    *,
    causal: bool = True,
) -> torch.Tensor:
    """The additive mask that lets every branch see the prompt and itself only.

    Every token sees itself, one of padding too, so that no softmax runs over nothing.

    Args:
        segment_ids: (batch, length); 0 is the prompt, ``j >= 1`` candidate j, -1 padding.
        position_ids: (batch, length); where each token stands in its own one-by-one sequence.
        num_queries: The last ``num_queries`` of the ``length`` tokens ask; all of them are keys.
        dtype: The dtype that attention computes in.
        window: Tokens a query sees back, itself included; ``None`` for full attention.
        causal: Whether a token sees only what stands before it; an encoder's also sees the rest of its own segment.

    Returns:
        (batch, 1, num_queries, length); 0 where visible, the dtype's lowest value elsewhere.

    Example:
        >>> segments, positions = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]])
        >>> (branch_mask(segments, positions, 3, torch.float32)[0, 0] == 0).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    length = segment_ids.shape[1]
    index = torch.arange(length, device=segment_ids.device)
    asked, queries = index[length - num_queries :, None], slice(length - num_queries, length)
    keys = segment_ids[:, None, :]
    visible = (keys == 0) | (keys == segment_ids[:, queries, None])
    if causal:
        visible &= index <= asked
    if window is not None:
        visible &= position_ids[:, queries, None] - position_ids[:, None, :] < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The attention window of each kind of layer of a base model.

    Raises:
        ValueError: The family has a kind of layer, or a mixture, that packed scoring is not shown equal for.
    """
    # Not every family has these two fields; a family without them has full attention in every layer.
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        raise ValueError(
            f"Base model family {config.model_type!r} has layers of kind {sorted(strange)}; branches can be kept "
            "apart in 'full_attention' and 'sliding_attention' layers only. Choose another base model."
        )
    if len(kinds) > 1 and config.model_type not in FAMILIES_WITH_MASK_PER_LAYER_TYPE:
        raise ValueError(
            f"Base model family {config.model_type!r} mixes full and sliding attention; shown equal for "
            f"{', '.join(FAMILIES_WITH_MASK_PER_LAYER_TYPE)} only. Choose one of these families."
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
