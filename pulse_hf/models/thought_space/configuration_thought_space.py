"""Configuration of the Thought Space."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

__all__ = ["PulseThoughtSpaceConfig"]


class PulseThoughtSpaceConfig(PreTrainedConfig):
    """What a :class:`PulseThoughtSpaceModel` is made of.

    Args:
        history_config: Configuration of the encoder that reads histories; any encoder of the Hub.
        rationale_config: Configuration of the encoder that reads rationales; unused with shared towers.
        shared_towers: One encoder reads both kinds of text (ours); ``False`` is the paper's two encoders.
        projection_dim: Width of the space; 0 keeps the encoders' own width and adds no projection.
        max_events: Events that the history texts of training told, newest first; tell as many when serving.
        review_words: Words of each review in those texts.

    Example:
        >>> from transformers import BertConfig
        >>> config = PulseThoughtSpaceConfig(history_config=BertConfig(hidden_size=32, num_attention_heads=2))
        >>> config.history_config.hidden_size
        32
    """

    model_type = "pulse_thought_space"
    sub_configs_defaults = {
        "history_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "rationale_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    history_config: PreTrainedConfig | dict | None = None
    rationale_config: PreTrainedConfig | dict | None = None
    shared_towers: bool = True
    projection_dim: int = 0
    max_events: int = 6
    review_words: int = 16


AutoConfig.register(PulseThoughtSpaceConfig.model_type, PulseThoughtSpaceConfig, exist_ok=True)
PulseThoughtSpaceConfig.register_for_auto_class()
