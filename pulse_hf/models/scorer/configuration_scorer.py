"""Configuration of the candidate scorer."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class PulseScorerConfig(PreTrainedConfig):
    """A causal language model's inner model and a linear head that gives one logit per candidate.

    Args:
        base_config: Configuration of the base language model (any family of ``AutoConfig``).
        num_candidate_features: Scalars given beside each candidate (e.g. a sequential score) that enter
            its logit by a linear weight; 0 is the paper's text-only system.
        initializer_range: Standard deviation of a freshly drawn head.
    """

    model_type = "pulse_scorer"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    base_config: PreTrainedConfig | dict | None = None
    num_candidate_features: int = 0
    initializer_range: float = 0.02
