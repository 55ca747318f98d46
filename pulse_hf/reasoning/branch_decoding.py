"""Decoding a batch of conversations, each with several branches that grow side by side over one prompt."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pulse_hf.reasoning.branch_cache import Kept, RowCache
from pulse_hf.reasoning.token_choice import Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompts are encoded in pieces of about so many tokens: larger ones fall out of a processor's cache.
_PIECE_TOKENS_CPU = 4096
_PIECE_TOKENS = 32768
# The cache grows by so many steps at once: unwritten columns cost time, and so does growing.
_GROWTH_STEPS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt on its way.

    Args:
        number: Its place among the prompts of the call.
        key: The prompt's key, which seeds its samples.
        ids: Its tokens.
        kept: Where a beginning of it is cached.
        reused: How many tokens of that cache it shares.
    """

    number: int
    key: str
    ids: list[int]
    kept: Kept | None = None
    reused: int = 0

    @property
    def num_new(self) -> int:
        """Tokens that must be encoded."""
        return len(self.ids) - self.reused


def columns_needed(rows: Series[Row], width: int, max_new_tokens: int) -> int:
    """Columns of the cache that :func:`decode_branches` will use."""
    return (
        max(row.reused for row in rows) + max(row.num_new for row in rows) + width * (max_new_tokens + _GROWTH_STEPS)
    )


def decode_branches(
    model: PreTrainedModel, rows: Series[Row], width: int, written: Written, room: int
) -> list[list[Kept]]:
    """Encode every prompt once and let ``width`` branches of each grow until all have ended.

    Args:
        model: A model with full attention, set to :data:`pulse_hf.reasoning.branch_cache.ATTENTION`.
        rows: The prompts, most new tokens first.
        width: Branches of each prompt.
        written: Takes the tokens.
        room: Bytes of cache that may be kept.

    Returns:
        Per row one place per branch where its cache lies; none for rows beyond ``room``.
    """
    batch = _Batch(model, rows, width, written, room)
    tokens, going = written.write(batch.alive, batch.encode()[:, None].expand(-1, width, -1), 0)
    for step in range(1, written.sampling.max_new_tokens):
        num_going, num_rows = int(going.sum()), len(going)
        # Finished rows leave when they are an eighth of the batch: moving the others costs about a step.
        if num_going <= num_rows - max(1, num_rows // 8):
            batch.retire(~going)
            if num_going == 0:
                return batch.places
            batch.narrow(going)
            tokens = tokens[going]
        tokens, going = written.write(batch.alive, batch.step(tokens, step), step)
    batch.retire(torch.ones_like(going))
    return batch.places


class _Batch:
    """The rows still being written, their cache and its layout (see ``branch_cache``)."""

    def __init__(self, model: PreTrainedModel, rows: Series[Row], width: int, written: Written, room: int) -> None:
        self.model, self.rows, self.width, self.written, self.room = model, rows, width, written, room
        self.places: list[list[Kept]] = [[] for _ in rows]
        self.loaded = max(row.reused for row in rows)
        self.base = self.used = self.loaded + max(row.num_new for row in rows)
        columns = self.base + width * min(_GROWTH_STEPS, written.sampling.max_new_tokens)
        self.cache = RowCache(len(rows), columns, int(model.config.get_text_config().num_hidden_layers))
        self.cache.load(
            [(index, row.kept, row.reused) for index, row in enumerate(rows) if row.kept and row.reused], self.loaded
        )
        visible = torch.zeros(len(rows), self.base, dtype=torch.bool)
        for index, row in enumerate(rows):
            visible[index, self._prompt_columns(row)] = True
        self.visible = visible.to(model.device)
        most = columns_needed(rows, width, written.sampling.max_new_tokens)
        seen = torch.nn.functional.pad(self.visible, (0, most - self.base))
        self.mask = self._additive(seen[:, None, None, :].expand(-1, 1, width, -1))
        self.lengths = torch.tensor([[len(row.ids)] * width for row in rows], device=model.device)
        self.alive = torch.arange(len(rows), device=model.device)

    def _prompt_columns(self, row: Row) -> list[int]:
        return [*range(self.loaded - row.reused, self.loaded), *range(self.base - row.num_new, self.base)]

    def _additive(self, see: torch.Tensor) -> torch.Tensor:
        # Not minus infinity: a padding query sees nothing, and its softmax must stay finite.
        mask = torch.zeros(see.shape, dtype=self.model.dtype, device=see.device)
        return mask.masked_fill_(~see, torch.finfo(mask.dtype).min)

    def encode(self) -> torch.Tensor:
        """Feed the new tokens of all prompts in pieces of rows; the logits after each prompt, (rows, vocabulary)."""
        budget = _PIECE_TOKENS_CPU if self.model.device.type == "cpu" else _PIECE_TOKENS
        order = torch.arange(self.base, device=self.model.device)
        pieces, start = [], 0
        while start < len(self.rows):
            longest = self.rows[start].num_new
            piece = self.rows[start : start + max(1, budget // longest)]
            stop, first = start + len(piece), self.base - longest
            ids = [[0] * (longest - row.num_new) + row.ids[row.reused :] for row in piece]
            see = self.visible[start:stop, None, None, :] & (order <= order[first:, None])
            output = self.model(
                input_ids=torch.tensor(ids, device=self.model.device),
                attention_mask=self._additive(see),
                position_ids=(self.lengths[start:stop, :1] + order[first:] - self.base).clamp_min(0),
                past_key_values=self.cache.over(start, stop, first, self.base),
                use_cache=True,
                logits_to_keep=1,
            )
            pieces.append(output.logits[:, -1])
            start = stop
        return torch.cat(pieces)

    def step(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """Feed the latest token of every branch, (n, width); the logits after it, (n, width, vocabulary)."""
        end = self.used + self.width
        if end > self.cache.columns:
            self.cache = self.cache.moved(None, self.used, self.used + _GROWTH_STEPS * self.width)
        # Each branch sees the column of its own token from now on.
        self.mask[:, 0, :, self.used : end].diagonal(dim1=1, dim2=2).zero_()
        output = self.model(
            input_ids=tokens,
            attention_mask=self.mask[..., : self.cache.columns],
            position_ids=self.lengths + (step - 1),
            past_key_values=self.cache.over(0, len(tokens), self.used, self.cache.columns),
            use_cache=True,
        )
        self.used = end
        return output.logits

    def retire(self, leaving: torch.Tensor) -> None:
        """Keep the cache of rows that have ended, as far as there is room."""
        whole = bool(leaving.all())
        size = self.cache.num_bytes(int(leaving.sum()), self.used)
        if size > self.room:
            return
        self.room -= size
        block = self.cache.block(None if whole else leaving.nonzero()[:, 0], self.used)
        rows = self.alive[leaving].tolist()
        tokens, lengths = self.written.tokens.tolist(), self.written.length.tolist()
        for place, index in enumerate(rows):
            row, prompt = self.rows[index], self._prompt_columns(self.rows[index])
            for branch, length in enumerate(lengths[index]):
                # The last token of a branch was chosen but never fed.
                own = range(self.base + branch, self.base + branch + self.width * (length - 1), self.width)
                ids = row.ids + tokens[index][branch][: length - 1]
                self.places[index].append(Kept(ids, block, place, [*prompt, *own]))

    def narrow(self, going: torch.Tensor) -> None:
        """Go on with the given rows only."""
        self.cache = self.cache.moved(going.nonzero()[:, 0], self.used, self.used + _GROWTH_STEPS * self.width)
        self.mask, self.lengths, self.alive = self.mask[going], self.lengths[going], self.alive[going]
