"""The Thought Space: histories and rationales in one space of meaning (paper §4.1)."""

from pulse_hf.models.thought_space.configuration_thought_space import PulseThoughtSpaceConfig
from pulse_hf.models.thought_space.modeling_thought_space import PulseThoughtSpaceModel, ThoughtSpaceOutput
from pulse_hf.models.thought_space.processing_thought_space import PulseThoughtSpaceProcessor

__all__ = ["PulseThoughtSpaceConfig", "PulseThoughtSpaceModel", "PulseThoughtSpaceProcessor", "ThoughtSpaceOutput"]
