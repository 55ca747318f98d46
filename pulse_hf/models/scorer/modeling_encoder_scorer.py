"""The candidate scorer on a text encoder instead of a causal language model (ours).

A small encoder that was trained to compare texts (MiniLM, 22 M parameters) reads titles better than the embedded
language model (3.8 M). Everything else is as in :mod:`.modeling_scorer`: the prompt (history, r*, s*) is read once,
each candidate is a branch that sees the prompt and itself, so that a score depends neither on order nor on company.
Within the prompt, and within a branch, every token sees every other one; the prompt sees no candidate.

What is judged is the mean state of a branch's tokens. What the encoder knows unasked is the cosine of that mean with
the prompt's; it stands where a language model's likelihood stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .configuration_scorer import PulseEncoderScorerConfig
from .modeling_branches import packed_branches
from .modeling_scorer import PulseScorerModel

__all__ = ["ENCODER_FAMILIES", "PulseEncoderScorerModel", "scorer_on"]

ENCODER_FAMILIES = ("bert", "distilbert")
"""Families whose encoders are shown to keep candidates apart: positions from 0, additive masks, full attention."""


class PulseEncoderScorerModel(PulseScorerModel):
    """An encoder under ``model`` and a scoring head."""

    config_class = PulseEncoderScorerConfig
    causal = False
    _tied_weights_keys = {}  # noqa: RUF012 (no output embedding)

    def __init__(self, config: PulseEncoderScorerConfig) -> None:
        super().__init__(config)
        family: Any = config.base_config
        if family.model_type not in ENCODER_FAMILIES:
            raise ValueError(
                f"{family.model_type!r} is no encoder that packed scoring is shown equal for; "
                f"there are {', '.join(ENCODER_FAMILIES)}."
            )

    def _make_base(self, base: Any) -> None:
        self.model = AutoModel.from_config(base, **_without_pooler(base))

    @classmethod
    def from_base(
        cls,
        model_id_or_path: str,
        *,
        head_token_ids: tuple[int, int] | None = None,
        num_candidate_features: int = 0,
        likelihood_scale: float = 8.0,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        seed: int = 0,
    ) -> PulseEncoderScorerModel:
        """A scorer on the weights of an encoder.

        Args:
            model_id_or_path: Folder or Hub id of the encoder.
            head_token_ids: Must be ``None``: an encoder has no output embedding to start a head from.
            num_candidate_features: See :class:`PulseEncoderScorerConfig`.
            likelihood_scale: Where the weight of the cosine of prompt and branch starts; 0 leaves it out.
            dtype: Of the encoder's weights; the head stays float32.
            attn_implementation: ``"sdpa"`` or ``"eager"``.
            revision: Of a Hub id.
            seed: Of the drawn head.

        Raises:
            ValueError: Head tokens are given.
        """
        if head_token_ids is not None:
            raise ValueError(f"{model_id_or_path} is an encoder and answers with no token; give no head tokens")
        where: dict[str, Any] = {"revision": revision, "use_safetensors": True, "trust_remote_code": False}
        base_config = AutoConfig.from_pretrained(model_id_or_path, revision=revision, trust_remote_code=False)
        _drop_no_attention(base_config)
        encoder = AutoModel.from_pretrained(
            model_id_or_path,
            config=base_config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            **where,
            **_without_pooler(base_config),
        )
        config = PulseEncoderScorerConfig(
            base_config=encoder.config,
            num_candidate_features=num_candidate_features,
            likelihood_scale=likelihood_scale,
        )
        with torch.device("meta"):
            scorer = cls(config)
        scorer.model = encoder
        return scorer.with_fresh_head(seed).eval()

    def _read(
        self, input_ids: torch.Tensor, segment_ids: torch.Tensor, position_ids: torch.Tensor, last_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kinds = {"token_type_ids": (segment_ids > 0).long()} if self._has_segments else {}
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(segment_ids, position_ids, input_ids.shape[1]),
            position_ids=position_ids,
            **kinds,
        ).last_hidden_state.float()
        segments = torch.arange(last_index.shape[1] + 1, device=segment_ids.device)
        mine = (segment_ids[:, None, :] == segments[:, None]).to(hidden)  # (batch, 1 + candidates, length)
        means = mine @ hidden / mine.sum(-1, keepdim=True).clamp(min=1)
        prompt, branches = means[:, :1], means[:, 1:]
        return branches, nn.functional.cosine_similarity(prompt, branches, dim=-1)

    @property
    def _has_segments(self) -> bool:
        return getattr(self.config.base_config, "type_vocab_size", 0) > 1

    @torch.inference_mode()
    def score_one_by_one(
        self,
        prompt_ids: Sequence[int],
        candidate_ids: Sequence[Sequence[int]],
        candidate_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The reference: each candidate alone behind the prompt.

        No ordinary sequence of both could be one: the prompt, which an encoder reads both ways, must not see the
        candidate.
        """
        return self.score_in_chunks(prompt_ids, candidate_ids, candidate_features, chunk_size=1)

    @torch.inference_mode()
    def score_in_chunks(
        self,
        prompt_ids: Sequence[int],
        candidate_ids: Sequence[Sequence[int]],
        candidate_features: torch.Tensor | None = None,
        chunk_size: int = 16,
    ) -> torch.Tensor:
        """Large candidate sets of one decision, chunk by chunk; an encoder keeps no cache, so the prompt is read anew.

        Args:
            prompt_ids: Tokens of the prompt.
            candidate_ids: Tokens of each candidate.
            candidate_features: (num_candidates, num_candidate_features).
            chunk_size: Candidates per pass; bounds memory, changes no score.

        Returns:
            (num_candidates,) logits, equal to those of one packed pass.
        """
        states, known = [], []
        for start in range(0, len(candidate_ids), chunk_size):
            chunk = candidate_ids[start : start + chunk_size]
            packed = packed_branches(prompt_ids, chunk)
            read, own, places = (torch.tensor([row], device=self.device) for row in packed)
            state, cosine = self._read(read, own, places, torch.zeros(1, len(chunk)))
            states.append(state[0])
            known.append(cosine[0])
        return self._judge(torch.cat(states), torch.cat(known), candidate_features)


def scorer_on(model_id_or_path: str, *, revision: str | None = None, **settings: Any) -> PulseScorerModel:
    """The scorer that a base model takes: an encoder's, or a causal language model's.

    Args:
        model_id_or_path: Folder or Hub id of the base model.
        revision: Of a Hub id.
        settings: As :meth:`PulseScorerModel.from_base` takes them.
    """
    config = AutoConfig.from_pretrained(model_id_or_path, revision=revision, trust_remote_code=False)
    encodes = config.model_type in ENCODER_FAMILIES and not getattr(config, "is_decoder", False)
    family = PulseEncoderScorerModel if encodes else PulseScorerModel
    return family.from_base(model_id_or_path, revision=revision, **settings)


def _drop_no_attention(base: PreTrainedConfig) -> None:
    """Dropout of attention has no fused kernel on a CPU: a step with it takes over twice as long."""
    for name in ("attention_probs_dropout_prob", "attention_dropout"):  # BERT's name, DistilBERT's name
        if hasattr(base, name):
            setattr(base, name, 0.0)


def _without_pooler(base: PreTrainedConfig) -> dict[str, bool]:
    """A pooler is never read; DistilBERT has none to leave out."""
    return {"add_pooling_layer": False} if base.model_type == "bert" else {}


AutoConfig.register(PulseEncoderScorerConfig.model_type, PulseEncoderScorerConfig, exist_ok=True)
AutoModel.register(PulseEncoderScorerConfig, PulseEncoderScorerModel, exist_ok=True)
