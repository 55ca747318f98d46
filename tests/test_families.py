"""The families of language models people choose: adapters reach their layers; Phi-4-mini at full width."""

from __future__ import annotations

import pytest
import torch
from test_modeling_scorer import tiny_base_config
from transformers import AutoModelForCausalLM, Phi3Config

from pulse_hf.models.scorer.configuration_scorer import PulseScorerConfig
from pulse_hf.models.scorer.modeling_scorer import PulseScorerModel
from pulse_hf.models.scorer.processing_scorer import EncodedExample, PulseScorerProcessor
from pulse_hf.training.scorer_fit import _target_modules

SPLIT = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
JOINED = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", SPLIT),
        ("qwen2", SPLIT),
        ("qwen3", SPLIT),
        ("smollm3", SPLIT),
        ("mistral", SPLIT),
        ("gemma3_text-window", SPLIT),
        ("phi3", JOINED),
    ],
)
def test_adapters_reach_every_linear_layer_of_the_decoder(family: str, names: list[str]) -> None:
    scorer = PulseScorerModel(PulseScorerConfig(base_config=tiny_base_config(family)))
    assert _target_modules(scorer, None) == names
    assert _target_modules(scorer, ["o_proj"]) == ["o_proj"]
    missing = "qkv_proj" if names is SPLIT else "q_proj"
    with pytest.raises(ValueError, match=rf"found \['{missing}'\], but .* has the linear layers"):
        _target_modules(scorer, ["o_proj", missing])


class _Padding:
    class tokenizer:  # noqa: N801
        pad_token_id = 0


def phi_4_mini(layers: int) -> Phi3Config:
    """The published shape: grouped queries, three quarters rotary, two sets of rotary factors, tied embeddings."""
    half = 48  # rotary pairs: 0.75 of a head of 128, by two
    return Phi3Config(
        vocab_size=200_064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=24,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        original_max_position_embeddings=4096,
        tie_word_embeddings=True,
        sliding_window=262_144,
        pad_token_id=199_999,
        bos_token_id=199_999,
        eos_token_id=199_999,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * half,
            "long_factor": [1.0 + place / 8 for place in range(half)],
            "original_max_position_embeddings": 4096,
        },
    )


@pytest.mark.slow
def test_phi_4_mini_at_full_width_scores_packed_as_one_by_one() -> None:
    torch.manual_seed(0)
    config = phi_4_mini(2)
    config._attn_implementation = "sdpa"
    model = PulseScorerModel(PulseScorerConfig(base_config=config)).eval()
    assert _target_modules(model, None) == JOINED
    prompt = torch.randint(10, 200_000, (96,)).tolist()
    candidates = [torch.randint(10, 200_000, (8 + place,)).tolist() for place in range(4)]
    packed = PulseScorerProcessor.pack(_Padding(), [EncodedExample(prompt, candidates)])  # type: ignore[arg-type]
    with torch.inference_mode():
        together = model(**packed).logits[0]
    apart = model.score_one_by_one(prompt, candidates)
    assert apart.std() > 0.01
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_phi_4_mini_at_full_width_writes_what_generate_writes() -> None:
    from transformers import AutoTokenizer

    from pulse_hf.models.embedded import resolve_model
    from pulse_hf.reasoning.generator import Sampling
    from pulse_hf.reasoning.prompts import Evidence, Prompt
    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

    torch.manual_seed(0)
    config = phi_4_mini(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("pulse-hf/pulse-nano")[0])
    engine = TransformersGenerator(model, tokenizer, model_id="phi", revision="1")
    asked = [
        Prompt(f"u#{n}", ({"role": "user", "content": "quiet things " * (3 + n)},), Evidence(())) for n in range(3)
    ]
    made = engine.generate(asked, width=2, sampling=Sampling(8), seed=0)
    for prompt, replies in zip(asked, made, strict=True):
        ids = torch.tensor([engine.chat.encode([prompt.messages])[0]])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = engine.chat.decode([token for token in expected[0, ids.shape[1] :].tolist()])
        assert [reply.text for reply in replies] == [text, text]
