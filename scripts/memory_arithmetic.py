"""Where the memory of a language model goes, by arithmetic alone: to know before a GPU is rented what will fit.

Counts hold for decoders with gated feed-forward layers, grouped queries and no biases (Llama, Mistral, Phi-3 and 4,
SmolLM3; Qwen adds less than one in a thousand). Weights, adapters, optimizer states and caches are exact; activations
and the head are the tensors that autograd keeps for the backward pass, without what an allocator loses between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "adapter_parameters",
    "cache_bytes_per_token",
    "generation_plan",
    "layer_activation_bytes_per_token",
    "linear_layers",
    "parameters",
    "training_plan",
    "weight_bytes",
]

_JOINED = ("phi3",)  # families that keep queries, keys and values in one matrix, and gate and up in another
_BF16, _FLOAT = 2, 4
# NF4 of bitsandbytes with double quantisation: 4 bits, one byte per 64 weights, one float per 256 of those bytes.
_NF4 = 0.5 + (1 + _FLOAT / 256) / 64
# Per logit of the vocabulary, backward: the float that was kept, its gradient, a temporary of the formula, and the
# gradient in bfloat16.
_LOGIT_BYTES = 3 * _FLOAT + _BF16


def linear_layers(config: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """Width in and out of each linear layer of one decoder layer.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=8, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2)
        >>> linear_layers(config)["k_proj"], linear_layers(config)["down_proj"]
        ((8, 4), (20, 8))
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = _attention_widths(config)
    if config.model_type in _JOINED:
        begin = {"qkv_proj": (hidden, query + 2 * key), "gate_up_proj": (hidden, 2 * inner)}
    else:
        begin = {"q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key)}
        begin |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    return begin | {"o_proj": (query, hidden), "down_proj": (inner, hidden)}


def _attention_widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Width of all queries, and of all keys (or values), of a token."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head, config.num_key_value_heads * head


def _split(config: PreTrainedConfig) -> tuple[int, int]:
    """Parameters of the decoder's linear layers, and all others."""
    linear = config.num_hidden_layers * sum(wide * high for wide, high in linear_layers(config).values())
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    return linear, embeddings + norms


def parameters(config: PreTrainedConfig) -> int:
    """Parameters of the causal language model; tied embeddings count once."""
    return sum(_split(config))


def adapter_parameters(config: PreTrainedConfig, rank: int) -> int:
    """Parameters of a LoRA adapter on every linear layer of the decoder."""
    return config.num_hidden_layers * rank * sum(wide + high for wide, high in linear_layers(config).values())


def weight_bytes(config: PreTrainedConfig, bits: int) -> int:
    """Bytes of the frozen weights.

    Args:
        config: Of the language model.
        bits: 16 for bfloat16, or 4 for the decoder's linear layers in NF4 with everything else in bfloat16.

    Raises:
        ValueError: Other bits.
    """
    if bits not in (4, 16):
        raise ValueError(f"bits is {bits}; expected 16 (bfloat16) or 4 (NF4)")
    linear, rest = _split(config)
    return round(linear * (_BF16 if bits == 16 else _NF4)) + rest * _BF16


def cache_bytes_per_token(config: PreTrainedConfig) -> int:
    """Bytes that keys and values of one token take in all layers, in bfloat16."""
    return 2 * config.num_hidden_layers * _attention_widths(config)[1] * _BF16


def layer_activation_bytes_per_token(config: PreTrainedConfig, *, dropout: bool) -> int:
    """Bytes that one decoder layer with LoRA everywhere keeps of a token for its backward pass, in bfloat16.

    Two norms keep their input as floats; attention keeps queries, its output, and keys and values spread to all heads
    (as a mask of ours demands); the feed-forward keeps gate, its activation and up; each adapter keeps its own copy
    of its input and, with dropout, a byte per number of it.
    """
    hidden, inner, query = config.hidden_size, config.intermediate_size, _attention_widths(config)[0]
    adapters = (_BF16 + dropout) * sum(wide for wide, _ in linear_layers(config).values())
    return 2 * _FLOAT * hidden + 4 * _BF16 * query + 3 * _BF16 * inner + adapters


def training_plan(
    config: PreTrainedConfig,
    *,
    bits: int = 16,
    rank: int = 16,
    batch_size: int = 4,
    prompt_tokens: int = 464,
    num_candidates: int = 10,
    candidate_tokens: int = 48,
    likelihood: bool = True,
    dropout: bool = True,
) -> dict[str, int]:
    """Bytes of one training step of the packed scorer with gradient checkpointing, by what they hold.

    Scoring as many decisions takes less: no activations are kept, and logits are held in 512 MiB at a time.

    Args:
        config: Of the language model.
        bits: Of its frozen weights, 16 or 4. (The package itself loads 16.)
        rank: Of the LoRA adapter, on every linear layer; it trains in float32, as PEFT makes it.
        batch_size: Decisions of a step on one device.
        prompt_tokens: Of each prompt.
        num_candidates: Of each decision.
        candidate_tokens: Of each candidate.
        likelihood: Whether a candidate's likelihood as text enters its logit: a row of the vocabulary per token.
        dropout: Whether the adapter has dropout.

    Returns:
        ``weights``, ``adapter``, ``gradients``, ``optimizer`` (AdamW's two moments), ``activations``, ``head``.

    Example:
        >>> from transformers import LlamaConfig
        >>> small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
        >>> plan = training_plan(small, rank=4)
        >>> plan["optimizer"] == 2 * plan["gradients"] == 2 * plan["adapter"] == 8 * adapter_parameters(small, 4)
        True
    """
    length = prompt_tokens + num_candidates * candidate_tokens
    tokens = batch_size * length
    adapter = _FLOAT * adapter_parameters(config, rank)
    kept = _BF16 * config.num_hidden_layers * config.hidden_size  # the input of every layer
    # One layer at a time is computed again: what it keeps, and the gradients that run through its widest part.
    layer = layer_activation_bytes_per_token(config, dropout=dropout)
    layer += _BF16 * (2 * config.intermediate_size + config.hidden_size)
    mask = _BF16 * batch_size * length**2
    read = batch_size * num_candidates * (candidate_tokens - 1) if likelihood else 0
    return {
        "weights": weight_bytes(config, bits),
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": 2 * adapter,
        "activations": tokens * (kept + layer) + mask + _unpacked_bytes(config, bits),
        "head": read * config.vocab_size * _LOGIT_BYTES,
    }


def generation_plan(
    config: PreTrainedConfig,
    *,
    bits: int = 16,
    batch_size: int = 16,
    width: int = 2,
    prompt_tokens: int = 1024,
    new_tokens: int = 160,
    kept_bytes: int = 0,
) -> dict[str, int]:
    """Bytes of writing one batch of texts, by what they hold.

    Args:
        config: Of the language model.
        bits: Of its weights, 16 or 4. (The package itself loads 16.)
        batch_size: Texts written at once.
        width: Texts of one prompt, which is stored once for all of them.
        prompt_tokens: Of each prompt.
        new_tokens: Of each text.
        kept_bytes: Cache that is kept from one level of a tree to the next.

    Returns:
        ``weights``, ``cache`` (keys and values), ``activations`` (of the prompts' forward pass, and the logits).

    Example:
        >>> from transformers import LlamaConfig
        >>> small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
        >>> generation_plan(small, batch_size=4, width=2, prompt_tokens=10, new_tokens=3)["cache"]
        16384
    """
    prompts = -(-batch_size // width)
    stored = prompts * prompt_tokens + batch_size * new_tokens
    passing = _BF16 * (3 * config.intermediate_size + 4 * config.hidden_size)
    logits = batch_size * config.vocab_size * (_BF16 + 2 * _FLOAT)
    return {
        "weights": weight_bytes(config, bits),
        "cache": stored * cache_bytes_per_token(config) + kept_bytes,
        "activations": prompts * prompt_tokens * passing + logits + _unpacked_bytes(config, bits),
    }


def _unpacked_bytes(config: PreTrainedConfig, bits: int) -> int:
    """The largest matrix of a layer in bfloat16, while it is used, where weights are stored in fewer bits."""
    return 0 if bits == 16 else _BF16 * max(wide * high for wide, high in linear_layers(config).values())
