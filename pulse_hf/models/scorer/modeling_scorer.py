"""Score all candidates of a decision in one pass (paper §4.2, Eq. 3).

The prompt (history, r*, s*) is encoded once. Each candidate is a branch behind it that sees the prompt
and itself but no other candidate, at positions that restart after the prompt; the branch's last hidden
state and the mean log-likelihood of its tokens give one logit. So a candidate's score depends neither
on the order nor on the company of the others and equals the score it gets in an ordinary sequence of
its own (``score_one_by_one``).

The likelihood is ours: what a language model already knows of "this reason, then that item" is in its
next-token distribution, and a small one does not learn the same match from a last hidden state within
any sensible number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_scorer import PulseScorerConfig
from .modeling_branches import branch_mask, layer_windows, packed_branches

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
_WHILE_TRAINING = "pulse_trained"  # sdpa, too: pulse_hf.models.attention
_LOGITS_AT_ONCE = 2**27  # held while nothing is trained, in 512 MiB: 671 tokens of a vocabulary of 200,000


@dataclass
class PulseScorerOutput(ModelOutput):
    """What the scorer returns.

    Args:
        loss: Cross-entropy over the candidates, mean over the batch; only where labels are given.
        logits: (batch, num_candidates) in float32; ``-inf`` where a candidate is absent.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PulseScorerModel(PreTrainedModel):
    """The base language model under ``model`` and ``lm_head``, as in every ``*ForCausalLM``, and a scoring head.

    Because module paths equal those of the causal language model, a LoRA adapter trained here also
    loads into the plain base model.
    """

    config_class = PulseScorerConfig
    base_model_prefix = "model"
    causal = True
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: PulseScorerConfig) -> None:
        super().__init__(config)
        self.layer_windows = layer_windows(config.base_config)
        base: Any = config.base_config
        self._make_base(base)
        self.score = nn.Linear(base.hidden_size, 1, bias=False)
        self.likelihood_score = nn.Linear(1, 1, bias=False)
        if config.num_candidate_features:
            self.feature_score = nn.Linear(config.num_candidate_features, 1, bias=False)
        self.post_init()

    def _make_base(self, base: Any) -> None:
        """What is tuned: the base model and its output embedding."""
        self.model = AutoModel.from_config(base)
        self.lm_head = nn.Linear(base.hidden_size, base.vocab_size, bias=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self._modules.get("feature_score"):
            init.ones_(module.weight)  # features are in the units of a logit: log-odds, log-evidence
        if module is self._modules.get("likelihood_score"):
            init.constant_(module.weight, self.config.likelihood_scale)

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
    ) -> PulseScorerModel:
        """A scorer on the weights of a causal language model.

        Args:
            model_id_or_path: Folder or Hub id of the base model.
            head_token_ids: ``(positive, negative)``: the head starts as the difference of these two rows of
                the base model's output embedding, so that a fresh logit is the base model's own log-odds of
                answering the positive token. ``None`` draws a small random head.
            num_candidate_features: See :class:`PulseScorerConfig`.
            likelihood_scale: Likewise.
            dtype: Of the base model's weights; the head stays float32.
            attn_implementation: ``"sdpa"`` or ``"eager"``.
            revision: Of a Hub id.
            seed: Of a drawn head.

        Raises:
            ValueError: The family keeps its inner model under another name, or its attention is unknown here.
        """
        causal = AutoModelForCausalLM.from_pretrained(
            model_id_or_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
        )
        if causal.base_model_prefix != "model":
            raise ValueError(
                f"{model_id_or_path}: {type(causal).__name__} keeps its inner model under "
                f"{causal.base_model_prefix!r}; an adapter would load into the scorer only. "
                "Choose a family that keeps it under 'model'."
            )
        config = PulseScorerConfig(
            base_config=causal.model.config,
            num_candidate_features=num_candidate_features,
            likelihood_scale=likelihood_scale,
            tie_word_embeddings=causal.config.tie_word_embeddings,
        )
        # On the meta device, so that the base weights are never drawn only to be thrown away.
        with torch.device("meta"):
            scorer = cls(config)
        scorer.model, scorer.lm_head = causal.model, causal.get_output_embeddings()
        scorer.with_fresh_head(seed)
        if head_token_ids is not None:
            scorer.init_head(causal.get_output_embeddings().weight, *head_token_ids)
        return scorer.eval()

    def with_fresh_head(self, seed: int) -> Self:
        """Draw the scoring head, which :meth:`from_base` made without storage; the weights beside it start as told.

        Args:
            seed: Of the drawn head.
        """
        config, size = self.config, self.config.base_config.hidden_size
        self.likelihood_score = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.likelihood_score.weight, config.likelihood_scale)
        self.score = nn.Linear(size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))
        if config.num_candidate_features:
            self.feature_score = nn.Linear(config.num_candidate_features, 1, bias=False)
            nn.init.ones_(self.feature_score.weight)
        return self

    @torch.no_grad()
    def init_head(self, output_embeddings: torch.Tensor, positive_id: int, negative_id: int) -> None:
        """Set the head to the difference of two output embedding rows.

        Args:
            output_embeddings: (vocabulary, dim), the base model's output embedding.
            positive_id: Token id of the "this fits" answer.
            negative_id: Token id of the "this does not fit" answer.
        """
        difference = output_embeddings[positive_id].float() - output_embeddings[negative_id].float()
        self.score.weight.copy_(difference[None])

    @property
    def reads_text(self) -> bool:
        """Whether the text counts at all; features alone decide where its fitted weight is 0."""
        likelihood = self.config.likelihood_scale and self.likelihood_score.weight.any()
        return bool(self.score.weight.any()) or bool(likelihood)

    def get_input_embeddings(self) -> nn.Module:
        """The base model's token embedding."""
        return self.model.get_input_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        position_ids: torch.Tensor,
        last_index: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidate_features: torch.Tensor | None = None,
    ) -> PulseScorerOutput:
        """Score packed decisions; the processor makes the inputs.

        Args:
            input_ids: (batch, length), the prompt followed by the candidates, padded at the right.
            segment_ids: (batch, length); 0 is the prompt, ``j >= 1`` candidate j, -1 padding.
            position_ids: (batch, length); branches restart after the prompt.
            last_index: (batch, num_candidates), the column of each candidate's last token, -1 if absent.
            labels: (batch,), the chosen candidate's place in ``last_index``.
            candidate_features: (batch, num_candidates, num_candidate_features).

        Raises:
            ValueError: The attention implementation is not one that takes additive masks exactly.
        """
        states, known = self._read(input_ids, segment_ids, position_ids, last_index)
        logits = self._judge(states, known, candidate_features).masked_fill(last_index < 0, -torch.inf)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return PulseScorerOutput(loss=loss, logits=logits)

    def _read(
        self, input_ids: torch.Tensor, segment_ids: torch.Tensor, position_ids: torch.Tensor, last_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Judged state (batch, num_candidates, dim) of each branch, and what the base model knows of it unasked."""
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(segment_ids, position_ids, input_ids.shape[1]),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        ends = last_index.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, ends), self._likelihoods(hidden, input_ids, segment_ids, last_index.shape[1])

    def _masks(
        self, segments: torch.Tensor, positions: torch.Tensor, num_queries: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        implementation = self.model.config._attn_implementation
        if implementation not in (*ATTENTION_IMPLEMENTATIONS, _WHILE_TRAINING):
            raise ValueError(
                f"Attention implementation {implementation!r} is not shown to keep candidates apart; "
                f"load the model with attn_implementation={' or '.join(map(repr, ATTENTION_IMPLEMENTATIONS))}."
            )
        device = segments.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.dtype
        masks = {
            kind: branch_mask(segments, positions, num_queries, dtype, window, causal=self.causal)
            for kind, window in self.layer_windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _likelihoods(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, segment_ids: torch.Tensor, num_candidates: int
    ) -> torch.Tensor:
        """Mean log-likelihood (batch, num_candidates) of each branch's tokens after its first, in float32.

        The first token is the same for all candidates; every other one is predicted by the token before it.
        """
        totals = torch.zeros(len(input_ids), num_candidates + 1, device=hidden.device)
        if self.config.likelihood_scale == 0:
            return totals[:, 1:]
        here = segment_ids[:, 1:]
        predicted = (here >= 1) & (here == segment_ids[:, :-1])
        states, tokens = hidden[:, :-1][predicted], input_ids[:, 1:][predicted]
        # Of a fit all logits are kept for the way back, whatever the chunks.
        size = max(1, len(tokens) if torch.is_grad_enabled() else _LOGITS_AT_ONCE // len(self.lm_head.weight))
        chunks = zip(states.split(size), tokens.split(size), strict=True)
        values = torch.cat([self._log_likelihoods(*chunk) for chunk in chunks])
        place = (predicted.nonzero()[:, 0], here[predicted])
        counts = torch.zeros_like(totals).index_put(place, torch.ones_like(values), accumulate=True)
        return (totals.index_put(place, values, accumulate=True) / counts.clamp(min=1))[:, 1:]

    def _log_likelihoods(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-likelihood (n,) of each token after the hidden state (n, dim) before it."""
        logits = self._token_logits(states)
        return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)

    def _token_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) in float32, with what some families do to them behind the head."""
        config, logits = self.model.config, self.lm_head(hidden).float()
        scale = getattr(config, "logit_scale", None)  # Cohere
        divisor = getattr(config, "logits_scaling", None)  # Granite
        if divisor and config.model_type == "hyperclovax":
            scale, divisor = divisor, None  # multiplies by the field that Granite divides by
        most = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        logits = logits * scale if scale else logits
        logits = logits / divisor if divisor else logits
        return most * torch.tanh(logits / most) if most else logits

    def _judge(self, ends: torch.Tensor, likelihoods: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Logits (..., num_candidates) in float32 of last hidden states (..., num_candidates, dim)."""
        if (features is None) != (self.config.num_candidate_features == 0):
            found = "none" if features is None else str(tuple(features.shape))
            raise ValueError(
                f"candidate_features: found {found}, the model has "
                f"num_candidate_features={self.config.num_candidate_features}"
            )
        # A product and a sum instead of a linear layer: autocast would round the logits to bfloat16.
        logits = (ends.float() * self.score.weight[0].float()).sum(-1)
        if self.config.likelihood_scale:
            logits = logits + likelihoods * self.likelihood_score.weight[0, 0].float()
        if features is not None:
            logits = logits + (features.float() * self.feature_score.weight[0].float()).sum(-1)
        return logits

    @torch.inference_mode()
    def score_one_by_one(
        self,
        prompt_ids: Sequence[int],
        candidate_ids: Sequence[Sequence[int]],
        candidate_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The reference: each candidate in an ordinary causal sequence of its own, without any mask of ours.

        Args:
            prompt_ids: Tokens of the prompt.
            candidate_ids: Tokens of each candidate.
            candidate_features: (num_candidates, num_candidate_features).

        Returns:
            (num_candidates,) logits.
        """
        ends, likelihoods = [], []
        for ids in candidate_ids:
            tokens = torch.tensor([[*prompt_ids, *ids]], device=self.device)
            hidden = self.model(input_ids=tokens, use_cache=False).last_hidden_state
            ends.append(hidden[0, -1])
            if not self.config.likelihood_scale:
                likelihoods.append(hidden.new_zeros(()))
                continue
            own = self._token_logits(hidden[0, len(prompt_ids) : -1]).log_softmax(1)
            likelihoods.append(own.gather(1, tokens[0, len(prompt_ids) + 1 :, None]).mean())
        return self._judge(torch.stack(ends), torch.stack(likelihoods), candidate_features)

    @torch.inference_mode()
    def score_in_chunks(
        self,
        prompt_ids: Sequence[int],
        candidate_ids: Sequence[Sequence[int]],
        candidate_features: torch.Tensor | None = None,
        chunk_size: int = 16,
    ) -> torch.Tensor:
        """Large candidate sets of one decision: the prompt's keys and values are kept, chunks run over them.

        Args:
            prompt_ids: Tokens of the prompt.
            candidate_ids: Tokens of each candidate.
            candidate_features: (num_candidates, num_candidate_features).
            chunk_size: Candidates per pass; bounds memory, changes no score.

        Returns:
            (num_candidates,) logits, equal to those of one packed pass.
        """
        # Without a config the cache keeps every layer whole; a sliding cache would forget what the mask still needs.
        cache = DynamicCache()
        self._extend(cache, list(prompt_ids), [0] * len(prompt_ids), list(range(len(prompt_ids))), len(prompt_ids))
        ends, likelihoods = [], []
        for start in range(0, len(candidate_ids), chunk_size):
            chunk = candidate_ids[start : start + chunk_size]
            tokens, segments, positions = packed_branches(prompt_ids, chunk)
            del tokens[: len(prompt_ids)]  # the cache holds them
            hidden = self._extend(cache, tokens, segments, positions, len(tokens))
            lengths = torch.tensor([len(ids) for ids in chunk], device=self.device)
            ends.append(hidden[lengths.cumsum(0) - 1])
            branches = torch.tensor([segments[len(prompt_ids) :]], device=self.device)
            read = torch.tensor([tokens], device=self.device)
            likelihoods.append(self._likelihoods(hidden[None], read, branches, len(chunk))[0])
            cache.crop(-len(tokens))
        return self._judge(torch.cat(ends), torch.cat(likelihoods), candidate_features)

    def _extend(
        self, cache: DynamicCache, tokens: list[int], segments: list[int], positions: list[int], num_queries: int
    ) -> torch.Tensor:
        """Hidden states (num_queries, dim) of new tokens behind what the cache holds."""
        segment_ids, position_ids = (torch.tensor([values], device=self.device) for values in (segments, positions))
        return self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            attention_mask=self._masks(segment_ids, position_ids, num_queries),
            position_ids=position_ids[:, -num_queries:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]


AutoConfig.register(PulseScorerConfig.model_type, PulseScorerConfig, exist_ok=True)
AutoModel.register(PulseScorerConfig, PulseScorerModel, exist_ok=True)
