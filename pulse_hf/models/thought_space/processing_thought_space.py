"""Text to token ids for the two towers of the Thought Space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from .configuration_thought_space import PulseThoughtSpaceConfig

__all__ = ["PulseThoughtSpaceProcessor"]

# Families that number positions from behind the padding token's id on, so that not all of their table is for texts.
_POSITIONS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


class PulseThoughtSpaceProcessor(ProcessorMixin):
    """Holds the two tokenizers and the longest texts of the two towers; saved in the model's folder.

    Texts beyond the limit lose their end. Histories are told newest first, so what goes is the oldest.

    Args:
        history_tokenizer: Tokenizer of the history tower.
        rationale_tokenizer: Tokenizer of the rationale tower.
        max_history_tokens: Longest history, special tokens included.
        max_rationale_tokens: Longest rationale, special tokens included.
    """

    def __init__(
        self,
        history_tokenizer: PreTrainedTokenizerBase,
        rationale_tokenizer: PreTrainedTokenizerBase,
        max_history_tokens: int = 256,
        max_rationale_tokens: int = 128,
        **kwargs: object,
    ) -> None:
        super().__init__(history_tokenizer, rationale_tokenizer, **kwargs)
        self.max_history_tokens = max_history_tokens
        self.max_rationale_tokens = max_rationale_tokens
        self.truncated = {"history": 0, "rationale": 0}  # texts cut since the processor was made

    @classmethod
    def from_encoders(
        cls,
        history_encoder: str,
        rationale_encoder: str | None = None,
        *,
        max_history_tokens: int = 256,
        max_rationale_tokens: int = 128,
        **loading: object,
    ) -> PulseThoughtSpaceProcessor:
        """The processor for pretrained encoders.

        Args:
            history_encoder: Folder or Hub id of the history encoder.
            rationale_encoder: The same for rationales; ``None`` takes the history encoder's.
            max_history_tokens: Longest history; at most what the encoder and its tokenizer take is kept.
            max_rationale_tokens: Longest rationale; likewise.
            loading: Passed to ``AutoTokenizer.from_pretrained``, such as ``revision``.
        """
        names = (history_encoder, rationale_encoder or history_encoder)
        tokenizers = [AutoTokenizer.from_pretrained(name, **loading) for name in names]
        configs = [AutoConfig.from_pretrained(name, **loading) for name in names]
        limits = [
            min(limit, tokenizer.model_max_length, _positions(config))
            for limit, tokenizer, config in zip(
                (max_history_tokens, max_rationale_tokens), tokenizers, configs, strict=True
            )
        ]
        return cls(*tokenizers, *limits)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load from a folder or the Hub; takes what ``ProcessorMixin.from_pretrained`` takes."""
        # Without a configuration one would be looked for beside each tokenizer, and none is there: online that is a
        # question for nothing, offline an error.
        return super().from_pretrained(pretrained_model_name_or_path, config=PreTrainedConfig(), **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save both tokenizers, the limits, and the code that loads them where this package is not installed."""
        for tokenizer in (self.history_tokenizer, self.rationale_tokenizer):
            forget_use(tokenizer)
        saved: list[str] = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        return saved

    def token_ids(self, side: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to the side's limit; cuts are counted in ``truncated``.

        Args:
            side: ``"history"`` or ``"rationale"``.
            texts: Raw strings.

        Raises:
            ValueError: ``texts`` is one string, or none at all, or one of them is not a string or has no token.
        """
        if isinstance(texts, str):
            raise ValueError("Found one string, expected a list of strings: wrap it in [ ].")
        if texts is None:
            raise ValueError("Found None, expected a list of strings.")
        texts = list(texts)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{side} text number {row} is {text!r:.80}, expected a string.")
        if not texts:
            return []
        is_history = side == "history"
        tokenizer = self.history_tokenizer if is_history else self.rationale_tokenizer
        limit = self.max_history_tokens if is_history else self.max_rationale_tokens
        whole = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        long = [row for row, ids in enumerate(whole) if len(ids) > limit]
        if long:
            cut = tokenizer([texts[row] for row in long], truncation=True, max_length=limit, padding=False)[
                "input_ids"
            ]
            for row, ids in zip(long, cut, strict=True):
                whole[row] = ids
            self.truncated[side] += len(long)
        empty = [row for row, ids in enumerate(whole) if not ids]
        if empty:
            raise ValueError(
                f"{side} text number {empty[0]} ({texts[empty[0]]!r}) has no token; drop empty texts first."
            )
        return whole

    def pad(self, side: str, token_ids: Sequence[Sequence[int]]) -> BatchEncoding:
        """Pad rows of token ids to the longest.

        Args:
            side: ``"history"`` or ``"rationale"``.
            token_ids: One row per text.

        Returns:
            ``input_ids`` and ``attention_mask``, each (batch, longest).
        """
        tokenizer = self.history_tokenizer if side == "history" else self.rationale_tokenizer
        padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        longest = max(len(ids) for ids in token_ids)
        input_ids = torch.full((len(token_ids), longest), padding, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
            attention_mask[row, : len(ids)] = 1
        return BatchEncoding({"input_ids": input_ids, "attention_mask": attention_mask})

    def __call__(self, histories: Sequence[str], rationales: Sequence[str]) -> BatchEncoding:
        """Inputs of the model's ``forward`` for texts of both kinds."""
        batch = BatchEncoding()
        for side, texts in (("history", histories), ("rationale", rationales)):
            padded = self.pad(side, self.token_ids(side, texts))
            batch.update({f"{side}_{name}": tensor for name, tensor in padded.items()})
        return batch

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs."""
        return [f"{side}_{name}" for side in ("history", "rationale") for name in ("input_ids", "attention_mask")]


def _positions(config: PreTrainedConfig) -> float:
    """Tokens that an encoder has positions for."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:  # relative ones
        return math.inf
    return positions - (config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0)


def forget_use(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take out of a tokenizer what its file would tell about its use: the same tokenizer, the same bytes."""
    for name in ("is_local", "local_files_only"):  # how it was loaded
        tokenizer.init_kwargs.pop(name, None)
    if tokenizer.is_fast:  # how the last text was cut
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


AutoProcessor.register(PulseThoughtSpaceConfig, PulseThoughtSpaceProcessor, exist_ok=True)
PulseThoughtSpaceProcessor.register_for_auto_class()
