"""SASRec as a Hub model; importing this folder makes ``AutoModel`` know ``pulse_sasrec``."""

from transformers import AutoConfig, AutoModel

from pulse_hf.models.sasrec.configuration_sasrec import PulseSASRecConfig
from pulse_hf.models.sasrec.modeling_sasrec import PulseSASRecModel, PulseSASRecOutput

AutoConfig.register(PulseSASRecConfig.model_type, PulseSASRecConfig, exist_ok=True)
AutoModel.register(PulseSASRecConfig, PulseSASRecModel, exist_ok=True)

__all__ = ["PulseSASRecConfig", "PulseSASRecModel", "PulseSASRecOutput"]
