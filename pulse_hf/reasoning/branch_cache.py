"""The key/value cache of batched, branching generation.

A row is one conversation. Its prompt is stored once, however many branches continue it, because
reading the cache is what decoding spends its time on.

Columns of a row, from the left::

    [ reused tokens, right-aligned | newly encoded tokens, right-aligned | step 0: one per branch | step 1 ... ]

Holes are masked, and positions are given explicitly, so a column's number never matters to the model.
Masks are additive and four-dimensional, which every family with full attention takes as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "pulse_branches"
_FEW_QUERIES = 64


def branch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of few queries over many keys, without repeating the keys for grouped heads.

    Equal to ``sdpa`` (which serves longer queries): the query heads that share a key head are laid
    side by side as more queries of that head. On CPU in bf16 two plain matrix products took half the
    time of the fused kernel, which is made for long queries.

    Args:
        module: The attention layer.
        query: (batch, heads, queries, dim).
        key: (batch, key heads, columns, dim).
        value: (batch, key heads, columns, dim).
        attention_mask: (batch, 1, queries, columns), added to the scores.
        scaling: Factor on the scores; ``1/sqrt(dim)`` if none.
        **kwargs: Passed on to ``sdpa``.

    Returns:
        (batch, queries, heads, dim) and no weights.
    """
    batch, heads, queries, dim = query.shape
    if queries > _FEW_QUERIES or attention_mask is None or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    key_heads, columns = key.shape[1:3]
    groups = heads // key_heads
    scores = query.reshape(batch, key_heads, groups * queries, dim) @ key.transpose(2, 3)
    scores = (
        scores.view(batch, key_heads, groups, queries, columns) * (scaling or dim**-0.5) + attention_mask[:, :, None]
    )
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    mixed = weights.view(batch, key_heads, groups * queries, columns) @ value
    return mixed.view(batch, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, branch_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(frozen=True, slots=True)
class Block:
    """Cache rows that were kept: per layer keys and values of (rows, key heads, columns, dim)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the cache of one conversation lies, for reuse by the next call.

    Args:
        ids: The tokens that are cached, from the first on.
        block: The rows it is among.
        row: Which of them.
        columns: The column of every token in ``ids``.
    """

    ids: list[int]
    block: Block
    row: int
    columns: list[int]


class RowCache:
    """Preallocated keys and values of a batch of rows, written in place.

    Whole tensors are handed to attention, unwritten columns included: a slice of the columns would be
    copied by every matrix product. So unwritten columns are zero (a masked column gets weight 0, and 0
    times a NaN of uninitialised memory would be NaN) and few.

    Args:
        rows: Number of conversations.
        columns: Most tokens a row can hold, branches included.
        num_layers: Attention layers of the model.
    """

    def __init__(self, rows: int, columns: int, num_layers: int) -> None:
        self.rows = rows
        self.columns = columns
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * num_layers

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors of one layer, allocated at its first use with the shape of ``keys`` and ``values``."""
        found = self.layers[index]
        if found is None:
            made = [like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3]) for like in (keys, values)]
            found = self.layers[index] = (made[0], made[1])
        return found

    def num_bytes(self, rows: int, used: int) -> int:
        """Memory that so many rows of ``used`` columns take."""
        pairs = [pair for pair in self.layers if pair is not None]
        return sum(tensor[0, :, 0].nbytes for pair in pairs for tensor in pair) * rows * used

    def over(self, start: int, stop: int, used: int, seen: int) -> Cache:
        """A transformers cache that writes rows ``start..stop`` from column ``used`` on and shows ``seen`` columns."""
        return Cache(
            layers=[_RowLayer(self, index, slice(start, stop), used, seen) for index in range(len(self.layers))]
        )

    def block(self, rows: torch.Tensor | None, used: int) -> Block:
        """The given rows as a block of their own; all rows without a copy if ``None``."""
        pairs = [pair for pair in self.layers if pair is not None]
        if rows is None:
            return Block(tuple((keys[:, :, :used], values[:, :, :used]) for keys, values in pairs))
        return Block(tuple((keys[rows, :, :used], values[rows, :, :used]) for keys, values in pairs))

    def moved(self, rows: torch.Tensor | None, used: int, columns: int) -> RowCache:
        """A new cache of the given rows (all if ``None``) with another number of columns; this one is empty then.

        Layer by layer, so that memory holds one layer twice and not the whole cache.
        """
        moved = RowCache(self.rows if rows is None else len(rows), columns, len(self.layers))
        for index, pair in enumerate(self.layers):
            if pair is None:
                continue
            keys, values = pair
            self.layers[index] = None
            for old, new in zip((keys, values), moved.layer(index, keys, values), strict=True):
                new[:, :, :used] = old[:, :, :used] if rows is None else old[rows, :, :used]
        return moved

    def load(self, kept: list[tuple[int, Kept, int]], end: int) -> None:
        """Copy kept tokens in, right-aligned to column ``end``.

        Args:
            kept: ``(row, where it lies, number of tokens to take)``.
            end: The column after the last loaded one.
        """
        by_block: dict[int, list[tuple[int, Kept, int]]] = {}
        for entry in kept:
            by_block.setdefault(id(entry[1].block), []).append(entry)
        for entries in by_block.values():
            block = entries[0][1].block
            device = block.layers[0][0].device
            longest = max(count for _, _, count in entries)
            # Rows shorter than the longest are filled up on the left with column 0; those are holes and masked.
            columns = torch.tensor(
                [[0] * (longest - count) + place.columns[:count] for _, place, count in entries], device=device
            )
            sources = torch.tensor([[place.row] for _, place, _ in entries], device=device)
            targets = torch.tensor([row for row, _, _ in entries], device=device)
            for index, (keys, values) in enumerate(block.layers):
                for old, new in zip((keys, values), self.layer(index, keys, values), strict=True):
                    new[targets, :, end - longest : end] = old[sources, :, columns].transpose(1, 2)


class _RowLayer(CacheLayerMixin):
    """One layer of a :class:`RowCache` as transformers sees it."""

    is_sliding = False

    def __init__(self, cache: RowCache, index: int, rows: slice, used: int, seen: int) -> None:
        super().__init__()
        self.cache, self.index, self.rows, self.used, self.seen = cache, index, rows, used, seen
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the row cache allocates."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns and return the columns shown."""
        start, self.used = self.used, self.used + key_states.shape[2]
        keys, values = (whole[self.rows] for whole in self.cache.layer(self.index, key_states, value_states))
        keys[:, :, start : self.used] = key_states
        values[:, :, start : self.used] = value_states
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns seen and their offset."""
        return self.seen, 0

    def get_seq_length(self) -> int:
        """Columns used."""
        return self.used

    def get_max_length(self) -> int:
        """Columns there are."""
        return self.cache.columns
