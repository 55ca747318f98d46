"""A-LLMRec as a model; importing this folder makes ``AutoModel`` know ``pulse_a_llmrec``."""

from transformers import AutoConfig, AutoModel

from pulse_hf.models.a_llmrec.configuration_a_llmrec import PulseALLMRecConfig
from pulse_hf.models.a_llmrec.modeling_a_llmrec import ALLMRecOutput, PulseALLMRecModel, SoftTokenEmbedding

AutoConfig.register(PulseALLMRecConfig.model_type, PulseALLMRecConfig, exist_ok=True)
AutoModel.register(PulseALLMRecConfig, PulseALLMRecModel, exist_ok=True)

__all__ = ["ALLMRecOutput", "PulseALLMRecConfig", "PulseALLMRecModel", "SoftTokenEmbedding"]
