"""Configuration of :class:`PulseALLMRecModel`."""

from typing import Any

from transformers import PreTrainedConfig


class PulseALLMRecConfig(PreTrainedConfig):
    """Sizes, weights of the losses, and which language model and prompt the soft tokens are for.

    Args:
        num_items: Items of the catalogue; indices run from 1, 0 is padding.
        item_dim: Width of SASRec's item and user vectors.
        text_dim: Width of the sentence encoder's vectors.
        latent_dim: Width of the shared latent space (original code: 128).
        lm_dim: Width of the language model's token embedding.
        item_weight: Weight of the item reconstruction (Kim et al. 2024: 0.5).
        text_weight: Weight of the text reconstruction (Kim et al. 2024: 0.2).
        likelihood_scale: Logit of a candidate per unit of mean token log-likelihood.
        base: Identity of the frozen language model: id, revision, weights_sha256.
        prompt: The prompt's shape (``PromptShape`` as a dict).
        max_prompt_tokens: Longest prompt, soft tokens included.
        max_candidate_tokens: Longest branch of a candidate, its soft token included.

    Example:
        >>> PulseALLMRecConfig(num_items=10).latent_dim
        128
    """

    model_type = "pulse_a_llmrec"

    num_items: int = 1
    item_dim: int = 64
    text_dim: int = 384
    latent_dim: int = 128
    lm_dim: int = 256
    item_weight: float = 0.5
    text_weight: float = 0.2
    likelihood_scale: float = 8.0
    base: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    max_prompt_tokens: int = 464
    max_candidate_tokens: int = 48
