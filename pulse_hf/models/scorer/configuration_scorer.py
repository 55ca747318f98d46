"""Configurations of the candidate scorer on a causal language model and on a text encoder."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class PulseScorerConfig(PreTrainedConfig):
    """A causal language model's inner model and a linear head: one logit per candidate.

    Args:
        base_config: Configuration of the base model (any family of ``AutoConfig``).
        num_candidate_features: Scalars given beside each candidate (e.g. a sequential score) that enter
            its logit by a linear weight; 0 is the paper's text-only system.
        likelihood_scale: Where the weight of a candidate's mean token log-likelihood in its logit starts; 0 leaves
            the hidden state alone.
        tie_word_embeddings: Whether the base model's output embedding is its input embedding.
        initializer_range: Standard deviation of a freshly drawn head.
    """

    model_type = "pulse_scorer"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    base_config: PreTrainedConfig | dict | None = None
    num_candidate_features: int = 0
    likelihood_scale: float = 8.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02


class PulseEncoderScorerConfig(PulseScorerConfig):
    """A text encoder and a linear head: one logit per candidate.

    The arguments are those of :class:`PulseScorerConfig`; ``likelihood_scale`` weighs the cosine between prompt and
    candidate, and no output embedding is there to be tied.
    """

    model_type = "pulse_encoder_scorer"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    tie_word_embeddings: bool = False
