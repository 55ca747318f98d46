"""From a prompt with places for soft tokens to ids, and the frozen language model that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pulse_hf.artifacts import ArtifactError
from pulse_hf.models.a_llmrec.modeling_a_llmrec import PulseALLMRecModel, SoftTokenEmbedding
from pulse_hf.models.embedded import commit_of, pinned_name, resolve_model
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor

if TYPE_CHECKING:
    from pulse_hf.models.a_llmrec.configuration_a_llmrec import PulseALLMRecConfig

__all__ = ["SoftPromptProcessor", "soft_scorer"]


class SoftExample(Protocol):
    """What encoding needs of an example."""

    @property
    def pieces(self) -> Sequence[str | int]:
        """The prompt: texts, 0 for the user's soft token, an item index for an item's."""

    @property
    def branches(self) -> Sequence[tuple[int, str]]:
        """Item index and title of each candidate."""


class SoftPromptProcessor(PulseScorerProcessor):
    """The scorer's processor for prompts with soft tokens, which become ids beyond the vocabulary.

    A candidate's branch is its soft token and then its title: the language model's mean log-likelihood of the title
    is its score, so nothing stands behind it.

    Args:
        tokenizer: The language model's tokenizer.
        config: Of the soft tokens.
        first: The first id that is no token of the language model.
    """

    def __init__(self, tokenizer: Any, config: PulseALLMRecConfig, first: int) -> None:
        super().__init__(
            tokenizer, max_prompt_tokens=config.max_prompt_tokens, max_candidate_tokens=config.max_candidate_tokens
        )
        self.first = first
        self.num_items = config.num_items

    @classmethod
    def of(cls, config: PulseALLMRecConfig) -> SoftPromptProcessor:
        """The processor of the language model that a configuration names."""
        from transformers import AutoConfig, AutoTokenizer

        path, where = _located(config)
        loading = {"revision": where, "trust_remote_code": False}
        language_model = AutoConfig.from_pretrained(path, **loading).get_text_config()
        return cls(AutoTokenizer.from_pretrained(path, **loading), config, language_model.vocab_size)

    def fits(self, pieces: Sequence[str | int]) -> bool:
        """Whether a prompt is within ``max_prompt_tokens``."""
        return len(self._ids(pieces, 0)) <= self.max_prompt_tokens

    def encode_soft(
        self, examples: Iterable[SoftExample], labels: Iterable[int | None] | None = None
    ) -> list[EncodedExample]:
        """Ids of examples; the user of example r is row r of the scorer's user vectors.

        Args:
            examples: What to score.
            labels: The chosen place of each, for training.
        """
        examples = list(examples)
        places = [None] * len(examples) if labels is None else list(labels)
        return [
            EncodedExample(self._ids(one.pieces, row), [self._branch(*branch) for branch in one.branches], label=place)
            for row, (one, place) in enumerate(zip(examples, places, strict=True))
        ]

    def _ids(self, pieces: Sequence[str | int], row: int) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, str):
                # The first text begins the prompt and gets what the tokenizer begins every text with.
                ids += self._text(piece) if ids else self._prompt_ids(piece)
            else:
                ids.append(self.first + (piece or self.num_items + 1 + row))
        return ids

    def _branch(self, item_index: int, title: str) -> list[int]:
        return [self.first + item_index, *self._text(f" {title}")[: self.max_candidate_tokens - 1]]

    def _text(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]


def soft_scorer(
    bridge: PulseALLMRecModel, user_vectors: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> PulseScorerModel:
    """The frozen language model of a bridge as a scorer that knows its soft tokens.

    A candidate's logit is ``likelihood_scale`` times the mean log-likelihood of its title's tokens.

    Args:
        bridge: Makes the soft tokens; its parameters keep their ``requires_grad``.
        user_vectors: (num_rows, item_dim), SASRec's user vectors of what will be scored.
        dtype: Of the language model's weights.

    Raises:
        ArtifactError: The language model is not the one the bridge was fitted for.
    """
    path, revision = _located(bridge.config)
    scorer = PulseScorerModel.from_base(
        path, likelihood_scale=bridge.config.likelihood_scale, dtype=dtype, revision=revision
    )
    scorer.requires_grad_(False)
    scorer.score.weight.zero_()  # the likelihood alone
    tokens = scorer.get_input_embeddings()
    first = scorer.config.base_config.vocab_size
    scorer.model.set_input_embeddings(SoftTokenEmbedding(tokens, bridge, user_vectors, first))
    return scorer


def _located(config: PulseALLMRecConfig) -> tuple[str, str | None]:
    """Path and Hub commit of the language model, after comparing it with the one on record."""
    known: Any = config.base
    path, found = resolve_model(pinned_name(known))
    if found["weights_sha256"] != known["weights_sha256"]:
        raise ArtifactError(
            f"these soft tokens were fitted for {known['id']} with weights_sha256 {known['weights_sha256']}, but the "
            f"one that is here has {found['weights_sha256']}; fit them anew or bring the other one back"
        )
    return path, commit_of(known)
