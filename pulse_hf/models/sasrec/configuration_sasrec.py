"""Configuration of :class:`PulseSASRecModel`."""

from transformers import PreTrainedConfig


class PulseSASRecConfig(PreTrainedConfig):
    """Size and objective of a SASRec model.

    Args:
        num_items: Items of the catalogue; indices run from 1, 0 is padding.
        dim: Width of item and user vectors; a multiple of ``num_heads``.
        num_layers: Self-attention blocks (Kang & McAuley 2018 use 2).
        num_heads: Attention heads.
        dropout: Share of activations dropped in training, in [0, 1).
        max_events: The most recent events a history is cut to.
        text_dim: Width of the frozen text vectors added to the item embedding; 0 for none.
        loss: ``"ce"`` (softmax over the whole catalogue), ``"bce"`` (Kang & McAuley 2018, sampled
            negatives) or ``"gbce"`` (gSASRec, Petrov & Macdonald 2023).
        gbce_t: Calibration ``t`` of gBCE in [0, 1]; 0 equals ``"bce"``, 1 is fully calibrated.
        initializer_range: Standard deviation of the initial weights.

    Example:
        >>> PulseSASRecConfig(num_items=10, dim=8).dim
        8
    """

    model_type = "pulse_sasrec"

    num_items: int = 1
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.2
    max_events: int = 50
    text_dim: int = 0
    loss: str = "ce"
    gbce_t: float = 0.75
    initializer_range: float = 0.02


PulseSASRecConfig.register_for_auto_class()
