"""The in-process engine: any causal language model of the Hub, with a decode loop of its own.

Own loop, because trees need three things ``model.generate`` does not offer together: randomness that
belongs to a row and not to its batch, prompts stored once for all branches that continue them, and a
cache that outlives the call so that the next level of a tree encodes only what is new.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pulse_hf.models.device import computes_in_bf16, default_device
from pulse_hf.models.loading import one_load_at_a_time
from pulse_hf.reasoning.branch_cache import ATTENTION, Kept
from pulse_hf.reasoning.branch_decoding import Row, columns_needed, decode_branches
from pulse_hf.reasoning.chat_tokens import ChatTokens
from pulse_hf.reasoning.generator import Generation, Sampling, Usage
from pulse_hf.reasoning.parsing import loops
from pulse_hf.reasoning.rewinding import Text, second_copy
from pulse_hf.reasoning.token_choice import Written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pulse_hf.reasoning.prompts import Message, Prompt

logger = logging.getLogger(__name__)

Conversation = tuple[tuple[str, str], ...]


class TransformersGenerator:
    """Generates with a causal language model in this process.

    Models whose attention is not full over the batch (sliding windows shorter than the texts, soft
    caps, recurrent layers) take a plain loop without shared prompts and reuse: same texts, slower.
    Only the end tokens of the model's generation settings are heeded, not its sampling advice.

    Args:
        model: The language model, in evaluation mode on its device; its attention implementation is set.
        tokenizer: Its tokenizer.
        model_id: Its id, recorded in every row.
        revision: Its revision.
        batch_size: Texts written at once; halved by itself where memory does not suffice. Where it does not suffice
            for one prompt, caches that are kept make room.
        cache_bytes: Cache kept from one call to the next at most; conversations beyond it are encoded anew.

    Raises:
        ValueError: The batch size is not positive, or the model has no end token.
    """

    engine = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str,
        revision: str,
        batch_size: int = 192,
        cache_bytes: int = 4 * 2**30,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.model, self.chat = model, ChatTokens(tokenizer)
        self.model_id, self.revision = model_id, revision
        self.batch_size, self.cache_bytes = batch_size, cache_bytes
        self.usage = Usage()
        self._longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        self._stops = torch.tensor(_stop_tokens(model, tokenizer), device=model.device)
        self._window = _full_attention_columns(model)
        if self._window:
            model.set_attn_implementation(ATTENTION)
        self._kept: dict[Conversation, Kept] = {}
        self._room = 0

    @classmethod
    @one_load_at_a_time
    def from_pretrained(
        cls,
        model_id: str,
        *,
        batch_size: int = 192,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TransformersGenerator:
        """Load a model by Hub id (``owner/name[@revision]``), folder, or the embedded model's name.

        In bfloat16 where the hardware computes in it, else in float32, if no ``dtype`` is given.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from pulse_hf.models.embedded import commit_of, resolve_model

        source, identity = resolve_model(model_id)
        place = torch.device(device or default_device())
        # Code from the repo is not merely left out: a missing answer is asked for on a terminal.
        pinned: dict[str, Any] = {"revision": commit_of(identity), "trust_remote_code": False}
        dtype = dtype or (torch.bfloat16 if computes_in_bf16(place.type) else torch.float32)
        stored = AutoConfig.from_pretrained(source, **pinned).dtype
        if stored not in (None, dtype):
            logger.info("%s: stored in %s, computed in %s here", model_id, stored, dtype)
        model = (
            AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **pinned).to(place).eval()
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
        return cls(model, tokenizer, model_id=identity["id"], revision=identity["revision"], batch_size=batch_size)

    @property
    def tokenizer_sha256(self) -> str:
        """What stands for the tokenizer and its chat template."""
        from pulse_hf.models.scorer.adapter import tokenizer_sha256

        return tokenizer_sha256(self.chat.tokenizer)

    def fits(self, prompt: Prompt, new_tokens: int) -> bool:
        """Whether the model has positions for a prompt and a reply of so many tokens."""
        return len(self.chat.encode([prompt.messages])[0]) + new_tokens <= self._longest

    def generate(
        self, prompts: Series[Prompt], *, width: int, sampling: Sampling, seed: int
    ) -> list[list[Generation]]:
        """Write ``width`` continuations of every prompt; see :class:`pulse_hf.reasoning.generator.Generator`.

        A prompt that extends a conversation of the last call by its reply reuses that one's cache.
        A prompt that leaves no room for the reply gets an empty text with finish ``"length"``.
        """
        started = time.perf_counter()
        results: dict[int, list[Generation]] = {}
        pending = self._batches(prompts, width, sampling)
        kept: dict[Conversation, Kept] = {}
        self._room = self.cache_bytes
        while pending:
            # Nothing else may hold a cache here: loops over rows and places would leave one in their variables.
            batch = pending.pop()
            to_spare = len(batch) > 1 or bool(kept or self._kept)
            with torch.inference_mode():
                made = self._batch(batch, width, sampling, seed, to_spare=to_spare)
            if made is not None:
                results |= {row.number: generations for row, (generations, _) in zip(batch, made, strict=True)}
                kept |= {
                    (*_conversation(prompts[row.number].messages), ("assistant", reply.text)): place
                    for row, (generations, places) in zip(batch, made, strict=True)
                    for reply, place in zip(generations, places, strict=False)
                }
            elif len(batch) > 1:
                logger.warning("out of memory with %d prompts of width %d; going on with halves", len(batch), width)
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]
            else:
                logger.warning("out of memory with 1 prompt of width %d; going on without the kept caches", width)
                kept, self._kept, self._room = {}, {}, 0
                pending = [_without_caches(rows) for rows in (*pending, batch)]
        self._kept = kept
        self.usage.seconds += time.perf_counter() - started
        return [results.get(number, [Generation("", finish="length")] * width) for number in range(len(prompts))]

    def _batches(self, prompts: Series[Prompt], width: int, sampling: Sampling) -> list[list[Row]]:
        """The rows of a call as batches; the first to be written is the last."""
        rows, size = self._rows(prompts, sampling), max(1, self.batch_size // width)
        return [rows[start : start + size] for start in range(0, len(rows), size)][::-1]

    def _rows(self, prompts: Series[Prompt], sampling: Sampling) -> list[Row]:
        """The prompts that leave room for a reply as tokens, those with most to encode first."""
        rows = []
        for number, (prompt, ids) in enumerate(
            zip(prompts, self.chat.encode([prompt.messages for prompt in prompts]), strict=True)
        ):
            if len(ids) + sampling.max_new_tokens > self._longest:
                logger.warning(
                    "%s: %d prompt tokens leave no room for %d new ones", prompt.key, len(ids), sampling.max_new_tokens
                )
                continue
            kept = self._kept.get(_conversation(prompt.messages[:-1]))
            rows.append(Row(number, prompt.key, ids, kept, _num_shared(kept.ids, ids) if kept else 0))
        return _most_new_first(rows)

    def _batch(
        self, rows: Series[Row], width: int, sampling: Sampling, seed: int, *, to_spare: bool
    ) -> list[tuple[list[Generation], list[Kept]]] | None:
        """The texts of one batch and what is kept of it; ``None`` where memory does not suffice.

        Seeds belong to rows, so that no text changes if the same rows are written in other batches.

        Raises:
            torch.OutOfMemoryError: It does not suffice, and there is nothing to spare.
        """
        room = self._room
        try:
            texts, places = self._decode(rows, width, sampling, seed)
            self._rewind(rows, texts, places, sampling, seed)
            made = [[self._generation(text) for text in branches] for branches in texts]
            return list(zip(made, places, strict=True))
        except torch.OutOfMemoryError:
            if not to_spare:
                raise
            self._room = room
            return None  # nothing goes on here, where the error still holds the memory of the batch

    def _decode(
        self, rows: Series[Row], width: int, sampling: Sampling, seed: int, banned: Series[Series[int]] | None = None
    ) -> tuple[list[list[Text]], list[list[Kept]]]:
        """Write one batch: per row the texts of its branches and the places of their cache."""
        written = Written([row.key for row in rows], width, sampling, seed, self._stops, banned)
        places: list[list[Kept]] = [[] for _ in rows]
        if columns_needed(rows, width, sampling.max_new_tokens) <= self._window:
            places = decode_branches(self.model, rows, width, written, self._room)
            self._room -= sum(
                block.num_bytes for block in {id(kept.block): kept.block for row in places for kept in row}.values()
            )
        else:
            self._decode_plainly(rows, width, written)
        self.usage.prompt_tokens += sum(row.num_new for row in rows)
        self.usage.reused_tokens += sum(row.reused for row in rows)
        self.usage.generated_tokens += int(written.length.sum())
        return written.texts(), places

    def _rewind(
        self,
        rows: Series[Row],
        texts: list[list[Text]],
        places: list[list[Kept]],
        sampling: Sampling,
        seed: int,
    ) -> None:
        """Write looping texts on from before their second copy, each with another token than began it."""
        room = sampling.max_new_tokens
        banned: dict[tuple[int, int, int], set[int]] = {}
        for attempt in range(sampling.rewinds):
            turns = self._turns_back(rows, texts, places, room, attempt)
            if not turns:
                return
            for row, branch, start in turns:
                banned.setdefault((row.number, branch, start), set()).add(texts[row.number][branch].tokens[start])
            tail = replace(sampling, max_new_tokens=room - min(start for _, _, start in turns))
            forbidden = [sorted(banned[row.number, branch, start]) for row, branch, start in turns]
            made, kept = self._decode([row for row, _, _ in turns], 1, tail, seed, forbidden)
            for (row, branch, start), (text,), now_kept in zip(turns, made, kept, strict=True):
                texts[row.number][branch] = (texts[row.number][branch].up_to(start) + text).up_to(room)
                if places[row.number] and now_kept:
                    places[row.number][branch] = now_kept[0]

    def _turns_back(
        self, rows: Series[Row], texts: list[list[Text]], places: list[list[Kept]], room: int, attempt: int
    ) -> list[tuple[Row, int, int]]:
        """What is to be written on: prompt and text before the second copy, the branch, where that copy began.

        A row's number is its place in the batch here. Texts near the end of the model's positions stay as they are.
        """
        turns = []
        for number, row in enumerate(rows):
            for branch, text in enumerate(texts[number]):
                start = second_copy(text.tokens) if loops(self.chat.decode(text.tokens)) else None
                if start is None or len(row.ids) + start + room > self._longest:
                    continue
                kept = places[number][branch] if places[number] else None
                ids = [*row.ids, *text.tokens[:start]]
                reused = _num_shared(kept.ids, ids) if kept else 0
                turns.append((Row(number, f"{row.key}~{branch}.{attempt}", ids, kept, reused), branch, start))
        return sorted(turns, key=lambda turn: (-turn[0].num_new, turn[0].key))

    def _decode_plainly(self, rows: Series[Row], width: int, written: Written) -> None:
        """Left-padded batch with the model's own cache and masks; every branch encodes its prompt."""
        longest, device = max(len(row.ids) for row in rows), self.model.device
        ids = torch.tensor(
            [[0] * (longest - len(row.ids)) + row.ids for row in rows for _ in range(width)], device=device
        )
        lengths = torch.tensor([[len(row.ids)] for row in rows for _ in range(width)], device=device)
        places = torch.arange(longest, device=device) - (longest - lengths)
        mask = (places >= 0).long()
        alive = torch.arange(len(rows), device=device)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": places.clamp_min(0)}
        takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        for step in range(written.sampling.max_new_tokens):
            if not takes_positions:
                inputs.pop("position_ids")
            output = self.model(**inputs, attention_mask=mask, use_cache=True)
            tokens, going = written.write(alive, output.logits[:, -1].view(len(rows), width, -1), step)
            if not bool(going.any()):
                return
            mask = torch.cat([mask, torch.ones_like(lengths)], dim=1)
            inputs = {
                "input_ids": tokens.reshape(-1, 1),
                "position_ids": lengths + step,
                "past_key_values": output.past_key_values,
            }

    def _generation(self, text: Text) -> Generation:
        length = len(text.tokens)
        likelihood = sum(text.log_probabilities) / length
        return Generation(self.chat.decode(text.tokens), likelihood, length, "stop" if text.stopped else "length")


def _most_new_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row.num_new, -row.reused, row.number))


def _without_caches(rows: Iterable[Row]) -> list[Row]:
    return _most_new_first(replace(row, kept=None, reused=0) for row in rows)


def _conversation(messages: Series[Message]) -> Conversation:
    return tuple((message["role"], message["content"]) for message in messages)


def _num_shared(cached: list[int], ids: list[int]) -> int:
    """How many first tokens are the same; the last of ``ids`` never counts, it is fed for its logits.

    Tokens are compared, not texts: reuse then equals encoding anew for every tokenizer and template.
    """
    pairs = enumerate(zip(cached, ids[:-1], strict=False))
    return next((index for index, (old, new) in pairs if old != new), min(len(cached), len(ids) - 1))


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    named = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not stops:
        raise ValueError("neither the model's generation_config nor the tokenizer names an end token (eos_token_id)")
    return sorted(int(stop) for stop in stops)


def _full_attention_columns(model: PreTrainedModel) -> float:
    """How many columns the model attends to in full; 0 if the branch cache cannot serve it at all.

    Asked by declared properties: attention through the common interface, positions given from outside,
    no soft caps, position biases, recurrent or chunked layers.
    """
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    inputs = inspect.signature(model.forward).parameters
    serves = (
        config._attn_implementation in ("sdpa", ATTENTION)
        and not model._is_stateful
        and {"position_ids", "logits_to_keep"} <= inputs.keys()
        and layers <= {"full_attention", "sliding_attention"}
        and not any(
            getattr(config, name, None)
            for name in ("attn_logit_softcapping", "attention_chunk_size", "alibi", "kv_sharing_modes")
        )
        and not model.config.is_encoder_decoder
    )
    if not serves:
        return 0
    return getattr(config, "sliding_window", None) or math.inf
